"""DPM-Solver and DPM-Solver++ with fixed steps, by the official file."""

import numpy as np
import torch
from fewstep.samplers import make_plan

from .case import check_nodes, frame_and_grid

TOLERANCE = 1e-9


def accepts(head, settings):
    return settings.get("algorithm") in ("dpmsolver", "dpmsolver++") and settings.get("method", "adaptive") != "adaptive"


def run(case):
    s = case.set
    method, order, steps = s["method"], s["order"], s["steps"]
    if method == "singlestep_fixed":
        steps -= steps % order  # the official code drops a rest before it makes the grid
    frame, grid, start = frame_and_grid(case, steps)
    common = {
        "order": order, "prediction": "data" if s["algorithm"] == "dpmsolver++" else "noise",
        "solver_type": s.get("solver_type", "dpmsolver"), "thresholding": s.get("thresholding", False),
        "denoise_to_zero": s.get("denoise_to_zero", False),
    }
    if method == "multistep":
        plan = make_plan("dpm_solver_multistep", frame, grid, lower_order_final=s.get("lower_order_final", True), **common)
        check_nodes(case, grid)
    else:
        allocation = "fixed" if method == "singlestep_fixed" else "fast"
        inner = "lambda" if s.get("skip") == "logSNR" and s["schedule"] not in ("edm", "flow") else "grid"
        plan = make_plan("dpm_solver_singlestep", frame, grid, allocation=allocation, inner=inner, **common)
        if "step_orders" in s:
            orders = np.bincount([stage.step for stage in plan.stages]).tolist()
            assert orders == s["step_orders"] + [1] * common["denoise_to_zero"]
    result, states = case.run(plan, frame, start)
    case.compare(result, TOLERANCE)
    if "states" in case and method == "multistep":
        torch.testing.assert_close(torch.stack(states[:-1]), case["states"], rtol=0, atol=1e-9 * case["states"].abs().max())
    if "x0_at_evals" in case and not common["thresholding"]:
        torch.testing.assert_close(torch.stack(case.predicted), case["x0_at_evals"], rtol=0, atol=1e-8)

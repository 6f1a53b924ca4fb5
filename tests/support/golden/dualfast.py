"""DualFast on top of the official DPM-Solver and UniPC files: a straightforward reference of the spec's authors."""

import numpy as np
import torch
from fewstep.samplers import Recipe, grids
from fewstep.samplers import run as run_plan

from .case import frame_and_grid, seen_by

TOLERANCE = 1e-10


def accepts(head, settings):
    return "schedule_c" in settings


def run(case):
    s = case.set
    case.set = {**s, "x_T_seed": s["x_seed"], "scale": s["guidance"], "skip": s["skip_type"], "nfe": s["steps"]}
    frame, grid, start = frame_and_grid(case, s["steps"], t_T=s["t_start"], t_0=s["t_end"])
    # the nodes of the file: the UniPC cases' schedule table is of single precision
    alpha, sigma = case["alpha"].numpy(), case["sigma"].numpy()
    np.testing.assert_allclose(case["t"], grid.t, rtol=1e-12)
    np.testing.assert_allclose(sigma, grid.sigma, rtol=1e-6)
    grid = grids.Grid(frame, sigma, alpha, np.log(alpha / sigma), case["t"].numpy(), "stop")
    if s["base"] == "unipc":
        options = {"order": s["order"], "variant": s["variant"] or "bh2", "lower_order_final": s["lower_order_final"]}
        recipe = Recipe("unipc", options)
    else:
        prediction = {"dpmsolver++": "data", "dpmsolver": "noise"}[s["base"]]
        recipe = Recipe("dpm_solver_multistep", {
            "order": s["order"], "prediction": prediction, "lower_order_final": s["lower_order_final"],
        })
    mix = {"c_max": s["c_max"], "c_min": s["c_min"], "schedule": s["schedule_c"], "tau": s["tau"], "scope": s["scope"]}
    plan = recipe.corrected("dualfast", **mix).resolve(frame, grid)
    states = []
    result = run_plan(plan, seen_by(case.denoiser(frame), states), start)
    assert len(states) == s["steps"]
    case.compare(result, TOLERANCE, "x_final")
    if "model_x" in case:
        torch.testing.assert_close(torch.stack(states), case["model_x"], rtol=0, atol=1e-10 * case["model_x"].abs().max())

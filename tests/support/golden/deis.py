"""DEIS and iPNDM, by the official torch port."""

import numpy as np
import torch
from fewstep.samplers import frames, grids, make_plan
from fewstep.samplers import run as run_plan

from .case import SD_BETAS

TOLERANCE = 1e-9


def accepts(head, settings):
    return settings.get("method") in ("t_ab", "rho_ab", "rho_rk", "ipndm")


def run(case):
    s = case.set
    frame = {
        "sd": lambda: frames.discrete_vp(betas=SD_BETAS, interpolation="alpha_squared"), "linear": frames.linear_vp,
        "cosine": lambda: frames.cosine_vp(normalized=False),
    }[s["schedule"]]()
    ends = {"t_T": 0.99, "t_0": 1e-3} if s["schedule"] == "cosine" else {}
    uniform = s["method"] == "ipndm"
    phase, power = ("t", 1.0) if uniform else (s.get("ts_phase", "t"), s.get("ts_order", 2.0))
    grid = grids.deis_grid(frame, s["steps"], phase=phase, power=power, **ends)
    np.testing.assert_allclose(grid.sigma, case["sigma"], rtol=1e-9)
    np.testing.assert_allclose(grid.alpha, case["alpha"], rtol=1e-9)
    if s["method"] == "rho_rk":
        plan = make_plan("deis_rk", frame, grid, tableau=s["rk_method"])
    elif uniform:
        plan = make_plan("ipndm", frame, grid)
    else:
        options = {"ab_order": s["ab_order"], "basis": s["method"].removesuffix("_ab")}
        plan = make_plan("deis_ab", frame, grid, quadrature="official", **options)
        exact = make_plan("deis_ab", frame, grid, **options)
        check_weights(case, plan, case["coef"], 1e-9)
        if "coef_exact" in case:
            check_weights(case, exact, case["coef_exact"], 1e-10)
            case.compare(run_plan(exact, case.model.denoiser(frame, s["scale"]), case.x_T), TOLERANCE, "final_exact")
    case.compare(case.run(plan, frame, case.x_T)[0], TOLERANCE)


def check_weights(case, plan, expected: torch.Tensor, tolerance: float) -> None:
    """The file's weights: newest first, for t_ab in the x frame, for rho_ab those of v."""
    for i, stage in enumerate(plan.stages):
        scale = 1.0 if case.set["method"] == "t_ab" else plan.nodes[i + 1].alpha
        row = [stage.carry.m.get(i - j, 0.0) / scale for j in range(expected.shape[1])]
        np.testing.assert_allclose(row, expected[i], rtol=0, atol=tolerance * float(expected[i].abs().max()))

"""k-diffusion's DPM-Solver functions."""

import numpy as np
from fewstep.samplers import GivenNoise, frames, grids, make_plan


def accepts(head, settings):
    return "kd_function" in settings


def run(case):
    s = case.set
    frame, name = frames.edm(), s["kd_function"]
    grid = grids.karras(frame, s["steps"], end="zero", t_T=14.6, t_0=0.03)
    if "sigma" in case and len(case["sigma"]) == len(grid.sigma):
        np.testing.assert_allclose(case["sigma"], grid.sigma, rtol=1e-12)
    sde = {key: s[key] for key in ("eta", "s_noise") if key in s}
    plan = {
        "dpmpp_2m": lambda: make_plan("dpm_solver_multistep", frame, grid, lower_order_final=False),
        "dpmpp_2m_sde": lambda: make_plan("dpm_solver_sde_multistep", frame, grid, solver_type=s["solver_type"], **sde),
        "dpmpp_3m_sde": lambda: make_plan("dpm_solver_sde_multistep", frame, grid, order=3, **sde),
        "dpmpp_sde": lambda: make_plan("dpm_solver_sde_singlestep", frame, grid, **sde),
        "dpm_fast": lambda: make_plan(
            "dpm_solver_singlestep", frame, grids.uniform_lambda(frame, s["steps"], end="stop", t_T=14.6, t_0=0.03),
            prediction="noise", inner="lambda"),
    }[name]()
    noise = GivenNoise(case.tensors["sde_noise"])
    result, _ = case.run(plan, frame, case.x_T * grid.sigma[0], noise=noise)
    assert noise.used == s["noises_used"]
    case.compare(result, 1e-9)

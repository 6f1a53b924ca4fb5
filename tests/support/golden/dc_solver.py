"""DC-Solver, by the official Stable-Diffusion solver and the official scheduler."""

import numpy as np
import torch
from fewstep.samplers import Recipe, frames, grids
from fewstep.samplers import run as run_plan
from fewstep.samplers.analytic import start_noise
from fewstep.samplers.calibration import polynomial
from fewstep.samplers.calibration.search_ratios import Settings, official_targets, official_trajectory, search_ratios

from .case import SD_BETAS, seen_by

TOLERANCE = 1e-10


def accepts(head, settings):
    return "dc_order" in settings


def run(case):
    s = case.set
    case.set = {**s, "x_T_seed": s["x_seed"], "scale": s["guidance"], "nfe": s["steps"]}
    frame = frames.discrete_vp(betas=SD_BETAS)
    scheduler = s["family"].startswith("scheduler")
    if scheduler:
        labels = np.append(case["timesteps"].numpy(), 0.0)
        grid = grids.from_times(frame, (labels + 1) / 1000, end="stop")
    else:
        grid = grids.uniform_t(frame, s["steps"], end="stop", t_T=1.0, t_0=1e-3)
    for name in ("t", "alpha", "sigma"):
        if name in case:
            np.testing.assert_allclose(getattr(grid, name), case[name], rtol=1e-9)
    base = Recipe("unipc", {
        "order": s["order"], "variant": s["variant"], "disable_corrector": tuple(s.get("disable_corrector", ())),
    })
    ratios = case["ratios"].tolist() if "ratios" in case else [1.0] * s["steps"]
    if scheduler:
        np.testing.assert_allclose(polynomial.evaluate(polynomial.SD21, s["guidance"], s["steps"]), ratios, rtol=1e-12)
        np.testing.assert_array_equal(polynomial.SD21, case.tensors["cpr_coefficients_sd21"])
    plan = base.corrected("dynamic_compensation", ratios=ratios, dc_order=s["dc_order"]).resolve(frame, grid)
    seen = []
    result = run_plan(plan, seen_by(case.denoiser(frame), seen), case.x_T)
    case.compare(result, TOLERANCE, "x_final")
    assert len(seen) == s["steps"]
    if "search_x_seed" in s:
        check_search(case, base.resolve(frame, grid), frame)
    if "model_x" in case:
        for name, mine in {"model_x": seen, "model_x0": case.predicted}.items():
            torch.testing.assert_close(torch.stack(mine), case[name], rtol=0, atol=TOLERANCE * case[name].abs().max())


def check_search(case, plan, frame):
    """The published search finds the file's ratios."""
    s = case.set
    starts = start_noise(s["search_x_seed"], (s["search_batch"], *case.x_T.shape[1:]))
    _, chosen = official_trajectory(frame, plan.nodes, 200)
    assert chosen == case["gt_index"].int().tolist()
    denoiser = case.model.denoiser(frame, s["guidance"])
    targets = official_targets(denoiser, frame, plan, starts)
    np.testing.assert_allclose([float(x.abs().mean()) for x in targets], case["gt_mean_abs"], rtol=1e-10)
    found = search_ratios(
        denoiser, plan, starts, targets, settings=Settings(dc_order=s["dc_order"], rule="official", method="gradient")
    )
    np.testing.assert_allclose(found, case["ratios"], rtol=1e-6)

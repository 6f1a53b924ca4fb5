"""DPM-Solver-v3: the official sampler, and the statistics of the authors' estimator formulas."""

import json
import re
import warnings

import numpy as np
import torch
from fewstep.samplers import frames, grids, make_plan
from fewstep.samplers import run as run_plan
from fewstep.samplers.calibration.measure_statistics import measure_statistics
from fewstep.samplers.calibration.statistics import Statistics
from fewstep.samplers.errors import CalibrationWarning
from safetensors import safe_open

from .case import SD_BETAS

SCHEDULES = {"sd": lambda: frames.discrete_vp(betas=SD_BETAS), "linear": frames.linear_vp, "edm": frames.edm}
GRIDS = {"time_uniform": grids.uniform_t, "time_quadratic": grids.quadratic_t, "logSNR": grids.uniform_lambda, "edm": grids.karras}


def accepts(head, settings):
    return head.get("system") == "DPM-Solver-v3" and settings.get("kind") in ("statistics", "statistics given", "sample")


def run(case):
    {"statistics": check_estimate, "statistics given": check_given, "sample": check_sample}[case.set["kind"]](case)


def frame_of(settings):
    return SCHEDULES[settings["schedule"]]()


def lambda_grid(settings):
    frame = frame_of(settings)
    return np.linspace(frame.lambda_(settings["t_start"]), frame.lambda_(settings["t_end"]), settings["N"] + 1)


def statistics(case, name):
    """The file's statistics of that name, on the noise levels that its settings describe."""
    with safe_open(case.path, "pt") as file:
        settings = json.loads(file.metadata()[name])
        l, s, b = (file.get_tensor(f"{name}.{part}") for part in "lsb")
        if settings["kind"] == "statistics":
            lam = file.get_tensor(f"{name}.lambda").numpy()
            np.testing.assert_allclose(lam, lambda_grid(settings), rtol=0, atol=1e-12)
        else:  # every stride-th point of another case's grid
            source = re.sub(r"^([a-z]+)([0-9.]+)$", r"ems_\1_g\2", settings["source"])  # vp1 is ems_vp_g1
            lam = file.get_tensor(f"{source}.lambda").numpy()[:: settings["stride"]]
    return Statistics(lam, l, s, b)


def check_given(case):
    """Per-element statistics come back from their file's tensors as they were, and average over positions."""
    found = statistics(case, case.name)
    again = Statistics.from_calibration(found.calibration())
    for name in "lsb":
        assert torch.equal(getattr(again, name), case[name])
        torch.testing.assert_close(getattr(again.per_channel(), name), case[name].mean((2, 3), keepdim=True), rtol=0, atol=1e-14)


def check_sample(case):
    s, frame = case.set, frame_of(case.set)
    grid = GRIDS[s["skip_type"]](frame, s["steps"], end="stop", t_T=s["t_start"], t_0=s["t_end"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # the corrector with s far below -8 is among the cases
        plan = make_plan(
            "dpm_solver_v3", frame, grid, statistics=statistics(case, s["statistics"]), order=s["order"], snap=True,
            corrector=("half" if s["half"] else "full") if s["use_corrector"] else "none", p_pseudo=s["p_pseudo"],
            c_pseudo=s["c_pseudo"], lower_order_final=s["lower_order_final"], degenerated=s["degenerated"], s_max=0.0,
        )
    sigma, alpha = (np.array([getattr(node, name) for node in plan.nodes]) for name in ("sigma", "alpha"))
    np.testing.assert_allclose(sigma, case["sigma"], rtol=1e-10)
    np.testing.assert_allclose(alpha, case["alpha"], rtol=1e-10)
    guided, seen, carried = case.model.denoiser(frame, s["guidance"]), [], []

    def denoiser(x, sigma):
        seen.append(x.clone())
        return guided(x, sigma)

    start = case.tensors["x_T"] * s["x_scale"]
    result = run_plan(plan, denoiser, start, callback=lambda p: carried.append(p.x.clone()))
    assert len(seen) == s["steps"]
    case.compare(result, 1e-9, "x_final")
    if "model_x" in case:
        case.compare(torch.stack(seen), 1e-10, "model_x")
        if s["use_corrector"]:
            case.compare(torch.stack(carried), 1e-10, "corrected_x")
        else:
            case.compare(torch.stack(seen), 1e-10, "corrected_x")


def check_estimate(case):
    s, frame = case.set, frame_of(case.set)
    with safe_open(case.path, "pt") as file:
        x_0, z, v = (file.get_tensor(f"data.{name}")[: s["K"]] for name in ("x0", "z", "v"))
    lam = lambda_grid(s)
    found = Statistics.from_calibration(measure_statistics(
        case.model.denoiser(frame, s["guidance"]), frame, x_0, lam, derivative="jvp", guidance=s["guidance"], batch=s["K"], smoothing=5,
        per="channel" if s["per_channel"] else "element", draws=lambda i, like: (z[i], v[i]),
    ))
    assert float((found.l - case["l"]).abs().max()) <= 1e-10
    for value, key in ((found.s, "s"), (found.b, "b"), (found.moments, "moments")):
        case.compare(value, 1e-8, key)

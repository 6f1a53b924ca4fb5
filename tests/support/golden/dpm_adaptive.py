"""DPM-Solver with adaptive steps, by the official file."""

from fewstep.samplers import make_plan

from .case import frame_and_grid


def accepts(head, settings):
    return settings.get("algorithm") in ("dpmsolver", "dpmsolver++") and settings.get("method") == "adaptive"


def run(case):
    s = case.set
    frame, grid, start = frame_and_grid(case, 1)
    plan = make_plan(
        "dpm_solver_adaptive", frame, grid, order=s["order"], solver_type=s.get("solver_type", "dpmsolver"),
        prediction="data" if s["algorithm"] == "dpmsolver++" else "noise", thresholding=s.get("thresholding", False),
    )
    case.compare(case.run(plan, frame, start)[0], 1e-8)

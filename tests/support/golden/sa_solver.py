"""SA-Solver by the paper's code, diffusers and ComfyUI; ``tests/data/golden/make_sa_solver.py`` wrote the numbers."""

from fewstep.samplers import GivenNoise, frames, make_plan

OPTIONS = ("predictor_order", "corrector_order", "tau", "sde_start", "sde_end", "simple_order_2", "lower_order_final")


def accepts(head, settings):
    return "sa_peer" in settings


def run(case):
    s = case.set
    frame = {"vp": frames.linear_vp, "edm": frames.edm, "flow": frames.flow}[s["frame"]]()
    sigma = case["sigma"]
    plan = make_plan("sa_solver", frame, sigma, **{name: s[name] for name in OPTIONS})
    start = case.x_T * (1.0 if s["frame"] == "vp" else sigma[0])
    noise = GivenNoise(case.tensors["sde_noise"][k : k + 1] for k in s["draws"])
    result, _ = case.run(plan, frame, start, noise=noise)
    assert plan.stochastic and noise.used == len(s["draws"]) == sum(row.noise is not None for row in plan.rows())
    case.compare(result, 1e-10)

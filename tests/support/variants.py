"""Every solver of the registry on one short schedule, with the options under which the engine takes other ways."""

from fewstep.samplers import frames, grids, solver_names

FRAME = frames.edm()
GRID = grids.karras(FRAME, 7, end="zero", t_T=14.6, t_0=0.03)
FIXED = [n for n in solver_names() if n != "dpm_solver_adaptive"]  # which reads its error after every step
VARIANTS = [
    *((n, {}) for n in FIXED if n != "deis_ab"), ("deis_ab", {"basis": "rho", "ab_order": 3}), ("unipc", {"order": 3}),
    ("unipc", {"prediction": "noise", "disable_corrector": (0, 3)}), ("ddim", {"prediction": "flow", "eta": 1.0}),
    ("dpm_solver_multistep", {"order": 3, "prediction": "noise"}), ("dpm_solver_sde_multistep", {"order": 3}),
    ("dpm_solver_multistep", {"thresholding": True}), ("deis_rk", {"tableau": "4rk"}),
]


def shrink(x, sigma):
    """The exact denoiser of unit Gaussian data in the alpha = 1 frame."""
    return x / (1 + sigma.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) ** 2)

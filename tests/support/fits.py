"""A mixture and fits to it that several tests of fitted plans make."""


import numpy as np
from fewstep.samplers import frames, grids
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration.fitted_plan import FitSettings, fit
from fewstep.samplers.calibration.joint import Joint
from fewstep.samplers.calibration.refine import Refinement

SD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
FRAMES = {
    "unit": frames.discrete_vp(SD).unit_alpha(), "vp": frames.discrete_vp(SD), "flow": frames.flow(), "edm": frames.edm(),
}
MODEL = GaussianMixture.make(0)
SOLVERS = [
    ("ddim", {}), ("ddim", {"prediction": "eps"}), ("dpm_solver_multistep", {"order": 3}), ("unipc", {"order": 3}),
    ("deis_ab", {}), ("ipndm", {}), ("dpm_solver_multistep", {"prediction": "noise"}), ("dpm_solver_singlestep", {"order": 2}),
]
B = 6


def grid_of(name, steps, end="zero"):
    frame = FRAMES[name]
    return grids.uniform_lambda(frame, steps, end=end, **({"t_T": 14.6, "t_0": 0.03} if name == "edm" else {"t_T": 0.99}))


def starts(grid, count, seed=0, size=(4, 2, 2)):
    return start_noise(seed, (count, *size)) * grid.sigma[0]


def mixture_fit(settings, steps=5, guidance=3.0, count=5 * B, **more):
    grid = grids.karras(FRAMES["edm"], steps, end="zero", t_T=14.6, t_0=0.03)
    return fit(MODEL.denoiser(FRAMES["edm"], guidance), grid, starts(grid, count), batch=B, held_out=2 * B, settings=settings, **more)


QUICK = FitSettings(teacher_steps=40, joint=Joint(rounds=0), refinement=Refinement(iterations=24, checks=4, rate=0.03))
JOINT = FitSettings(teacher_steps=40, joint=Joint(rounds=4, parts=1))

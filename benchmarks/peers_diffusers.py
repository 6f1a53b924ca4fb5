"""diffusers' schedulers, run as its pipelines run them: ``set_timesteps``, ``scale_model_input``, ``step``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..demo.schedule import BETA_END, BETA_START, TRAIN_STEPS
from .methods import Method, Unfit, quiet
from .problems import Denoiser, Problem

Grids = Mapping[str, Mapping[str, Any]]  # name -> options
BETAS = {"num_train_timesteps": TRAIN_STEPS, "beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "scaled_linear"}
SPACINGS: Grids = {name: {"timestep_spacing": name} for name in ("linspace", "leading", "trailing")}
SIGMAS: Grids = {**SPACINGS, "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True},
          "beta": {"use_beta_sigmas": True}}
LU: Grids = {**SIGMAS, "lu_lambdas": {"use_lu_lambdas": True}}
EDM: Grids = {"edm karras": {}, "edm exponential": {"sigma_schedule": "exponential"}}
FLOW: Grids = {"shift 1": {}, "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}

# (class, options, the grids it offers): deterministic ones on noise prediction
VP: list[tuple[str, dict[str, Any], Grids]] = [
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}, SPACINGS),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, {k: SPACINGS[k] for k in ("leading", "trailing")}),
    *(("DPMSolverMultistepScheduler", {"solver_order": o, "algorithm_type": a, "solver_type": s, "final_sigmas_type": f}, LU)
      for o in (2, 3) for a, f in (("dpmsolver++", "zero"), ("dpmsolver", "sigma_min"))
      for s in (("midpoint", "heun") if o == 2 else ("midpoint",))),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "euler_at_final": True}, LU),
    *(("DPMSolverSinglestepScheduler", {"solver_order": o, "lower_order_final": True, "final_sigmas_type": "zero"},
       {k: v for k, v in SIGMAS.items() if k not in SPACINGS} | {"default": {}}) for o in (2, 3)),
    *(("UniPCMultistepScheduler", {"solver_order": o, "solver_type": s}, SIGMAS) for o in (2, 3) for s in ("bh1", "bh2")),
    *(("DEISMultistepScheduler", {"solver_order": o}, SIGMAS) for o in (2, 3)),
    ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4, "tau_func": lambda t: 0}, SIGMAS),
    ("EulerDiscreteScheduler", {}, SIGMAS), ("HeunDiscreteScheduler", {}, SIGMAS), ("LMSDiscreteScheduler", {}, SIGMAS),
    ("KDPM2DiscreteScheduler", {}, SIGMAS),
    *(("EDMDPMSolverMultistepScheduler", {"solver_order": o}, EDM) for o in (2, 3)),
    ("EDMEulerScheduler", {}, EDM),
]
STOCHASTIC: list[tuple[str, dict[str, Any], Grids]] = [
    ("EulerAncestralDiscreteScheduler", {}, SPACINGS), ("LCMScheduler", {"original_inference_steps": 50}, {"leading": {}}),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, SIGMAS),
    ("SASolverScheduler", {"predictor_order": 2, "corrector_order": 2}, SIGMAS),
]
FLOWS: list[tuple[str, dict[str, Any], Grids]] = [
    ("FlowMatchEulerDiscreteScheduler", {}, {**FLOW, "shift 3": {"shift": 3.0}, "beta": {"use_beta_sigmas": True}}),
    ("FlowMatchHeunDiscreteScheduler", {}, {"shift 1": {}, "shift 3": {"shift": 3.0}}),
    *((name, {**options, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
       {"shift 1": {"flow_shift": 1.0}, "shift 3": {"flow_shift": 3.0}})
      for name, options in (
          ("DPMSolverMultistepScheduler", {"solver_order": 2}), ("DPMSolverMultistepScheduler", {"solver_order": 3}),
          ("UniPCMultistepScheduler", {"solver_order": 2}), ("UniPCMultistepScheduler", {"solver_order": 3}),
          ("DEISMultistepScheduler", {"solver_order": 2}), ("DEISMultistepScheduler", {"solver_order": 3}),
          ("DPMSolverSinglestepScheduler", {"solver_order": 2}),
          ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4, "tau_func": lambda t: 0}),
      )),
]


def scheduler(name: str, options: Mapping[str, Any], problem: Problem, steps: int | None = None) -> Any:
    """A scheduler of the class ``name`` for the problem's schedule, with its times set where ``steps`` are given."""
    import diffusers

    config = dict(options)
    if name.startswith("EDM"):
        config |= {"sigma_min": float(problem.frame.sigma(problem.frame.time.t_0)), "sigma_max": problem.sigma_max}
    elif not problem.flow:
        config |= BETAS
    with quiet():
        made = getattr(diffusers, name)(**config)
        if steps is not None:
            made.set_timesteps(steps)
    return made


def network(problem: Problem, denoiser: Denoiser, made: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """``unet(scaled x, t)`` as the scheduler's pipeline has it: noise prediction, EDM's F, or the flow's velocity."""
    name = type(made).__name__

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = problem.frame.sigma(problem.frame.time.t_of_model_time(float(t)))
        scale = (1 + sigma * sigma) ** 0.5
        out: torch.Tensor = (x * scale - denoiser(x * scale, torch.tensor([sigma]))) / sigma
        return out

    def edm(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma, data = torch.exp(4 * t.double()), made.config.sigma_data
        scale = (sigma**2 + data**2).sqrt()  # x = x_sigma / scale
        denoised = denoiser(x * scale, sigma.reshape(1))
        out: torch.Tensor = (denoised - data**2 / scale * x) * scale / (sigma * data)
        return out

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = t.double() / made.config.num_train_timesteps
        out: torch.Tensor = (x - denoiser(x, sigma.reshape(1))) / sigma
        return out

    return velocity if problem.flow else edm if name.startswith("EDM") else eps


def start(problem: Problem, made: Any) -> torch.Tensor:
    """The noise times the scheduler's first sigma, in the scaling of its states."""
    first = float(made.sigmas[0]) if getattr(made, "sigmas", None) is not None else _sigma_of(problem, made.timesteps[0])
    if problem.flow:
        scale = float(made.timesteps[0]) / made.config.num_train_timesteps
    else:  # schedulers that scale the model's input keep states with alpha = 1
        scale = first if _unit(made) else first / math.sqrt(1 + first * first)
    return problem.noise.mul(scale)


def _sigma_of(problem: Problem, t: torch.Tensor) -> float:
    return float(problem.frame.sigma(problem.frame.time.t_of_model_time(float(t))))


def _unit(made: Any) -> bool:
    names = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete", "EDM")
    return type(made).__name__.startswith(names)


def run(made: Any, unet: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The loop of diffusers' pipelines."""
    generator = torch.Generator().manual_seed(0)
    takes_generator = "generator" in made.step.__code__.co_varnames
    with quiet():
        for t in made.timesteps:
            given = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
            x = made.step(unet(given, t), t, x, **({"generator": generator} if takes_generator else {})).prev_sample
    return x


def methods() -> list[Method]:
    """Every scheduler of the tables; nothing where diffusers is missing."""
    try:
        import diffusers
    except ImportError:
        return []
    diffusers.utils.logging.set_verbosity_error()
    tables = [(VP, False, False), (STOCHASTIC, False, True), (FLOWS, True, False)]
    return [_method(*row, flow, noisy) for table, flow, noisy in tables for row in table]


def _method(name: str, options: dict[str, Any], grids: Grids, flow: bool, stochastic: bool) -> Method:
    def sample(problem: Problem, denoiser: Denoiser, grid: str, steps: int) -> torch.Tensor:
        try:
            made = scheduler(name, {**options, **grids[grid]}, problem, steps)
            return run(made, network(problem, denoiser, made), start(problem, made))
        except (ValueError, IndexError, AssertionError, ZeroDivisionError) as error:  # e.g. too few steps for its order
            raise Unfit from error

    shown = {k: v for k, v in options.items() if k in (
        "solver_order", "algorithm_type", "solver_type", "euler_at_final", "predictor_order", "corrector_order")}
    label = f"{name.removesuffix('Scheduler')}({', '.join(f'{k}={v}' for k, v in shown.items())})"
    return Method("diffusers", label, lambda problem: tuple(grids) if problem.flow == flow else (), sample, stochastic)

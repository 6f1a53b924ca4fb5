"""The sampling loops whose overhead is measured: the pack's plans and the peers' forms of the same methods."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..demo.schedule import alphas_cumprod
from ..samplers import frames, grids, lincomb, make_plan, run
from ..samplers.plan import Plan
from . import peers_diffusers, peers_sigmas
from .methods import quiet
from .problems import Denoiser

STEPS = 20
ALONE = "fewstep, torch alone"  # the pack where Numba is not installed
LEAST = lincomb.CPU_LEAST
FRAME = frames.discrete_vp(alphas_cumprod()).unit_alpha()
GRID = grids.karras(FRAME, STEPS, end="zero")

# samplers that keep a Brownian tree: above so many elements one run takes minutes and gigabytes
TREES, TREE_NUMEL = ("dpmpp_2m_sde", "dpmpp_3m_sde"), 500_000
# (form, solver, options)
OURS: list[tuple[str, str, dict[str, Any]]] = [
    ("euler", "ddim", {}), ("2M", "dpm_solver_multistep", {"order": 2}), ("3M", "dpm_solver_multistep", {"order": 3}),
    # ComfyUI's and diffusers' default deis has three terms, k-diffusion's lms four
    ("deis", "deis_ab", {"ab_order": 2}), ("lms", "deis_ab", {"ab_order": 3}), ("ipndm", "ipndm", {"order": 4}),
    ("unipc 2", "unipc", {"order": 2}), ("unipc 3", "unipc", {"order": 3}), ("2M SDE", "dpm_solver_sde_multistep", {"order": 2}),
    ("3M SDE", "dpm_solver_sde_multistep", {"order": 3}), ("SA", "sa_solver", {}), ("euler ancestral", "ddim", {"eta": 1.0}),
]
SIGMAS: dict[str, dict[str, str]] = {
    "ComfyUI": {
        "euler": "euler", "dpmpp_2m": "2M", "res_multistep": "2M", "deis": "deis", "ipndm": "ipndm", "uni_pc": "unipc 3",
        "uni_pc_bh2": "unipc 3", "euler_ancestral": "euler ancestral", "dpmpp_2m_sde": "2M SDE", "dpmpp_3m_sde": "3M SDE",
        "er_sde": "3M SDE", "sa_solver": "SA",
    },
    "k-diffusion": {
        "euler": "euler", "dpmpp_2m": "2M", "lms": "lms", "euler_ancestral": "euler ancestral", "dpmpp_2m_sde": "2M SDE",
    },
}
DIFFUSERS: list[tuple[str, str, dict[str, Any]]] = [
    ("euler", "DDIMScheduler", {}), ("euler", "EulerDiscreteScheduler", {}),
    ("2M", "DPMSolverMultistepScheduler", {"solver_order": 2}),
    ("3M", "DPMSolverMultistepScheduler", {"solver_order": 3}), ("deis", "DEISMultistepScheduler", {"solver_order": 3}),
    ("unipc 2", "UniPCMultistepScheduler", {"solver_order": 2}), ("unipc 3", "UniPCMultistepScheduler", {"solver_order": 3}),
    ("2M SDE", "DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    ("SA", "SASolverScheduler", {"predictor_order": 3, "corrector_order": 4}),
    ("euler ancestral", "EulerAncestralDiscreteScheduler", {}),
]


Facts = tuple[float, int, float]  # passes, states and draws, see Loop


@dataclass(frozen=True, eq=False)
class Loop:
    """``run()`` takes ``STEPS`` steps; ``setup()`` before it is not counted.

    Attributes:
        form: the method, the same word for every package's form of it.
        passes, states, draws: of the pack's plan of that form: states read and written a step, states held, and draws of
            noise a step.
    """

    package: str
    name: str
    form: str
    passes: float
    states: int
    draws: float
    setup: Callable[[], Any]
    run: Callable[[], Any]


def passes(plan: Plan) -> float:
    """States that the plan's rows read and write, for each evaluation; a draw of noise is read like a stored output."""
    total = 0
    for stage in plan.stages:
        total += 0 if stage.store == (0.0, 1.0) else 3
    for row in plan.rows():
        if not row.is_identity:
            total += len(row.m) + row.reads_x + row.reads_start + (row.noise is not None) + 1
    return total / plan.nfe


def loops(x: torch.Tensor, denoiser: Denoiser) -> list[Loop]:
    """Every loop for states like ``x``, of the packages that are there."""
    plans = {form: make_plan(solver, FRAME, GRID, **options) for form, solver, options in OURS}
    facts = {
        form: (passes(plan), plan.peak_latents, sum(row.noise is not None for row in plan.rows()) / plan.nfe)
        for form, plan in plans.items() if isinstance(plan, Plan)
    }

    def mine(plan: Any) -> Callable[[], Any]:
        return lambda: run(plan, denoiser, x, seed=0)

    _with_kernel(True)  # an earlier size may have left it off
    found = []
    for form, solver, options in OURS:
        label = f"{solver}({', '.join(f'{k}={v}' for k, v in options.items())})"
        found.append(Loop("fewstep", label, form, *facts[form], partial(_with_kernel, True), mine(plans[form])))
        if lincomb.cpu_kernels_for(x) is not None:
            found.append(Loop(ALONE, label, form, *facts[form], partial(_with_kernel, False), mine(plans[form])))
    return [*found, *_sigma_loops(x, denoiser, facts), *_diffusers_loops(x, denoiser, facts)]


def _with_kernel(on: bool) -> None:
    lincomb.CPU_LEAST = LEAST if on else 1 << 62


def _nothing() -> None:
    pass


def _sigma_loops(x: torch.Tensor, denoiser: Denoiser, facts: dict[str, Facts]) -> list[Loop]:
    sampling, samplers = peers_sigmas.k_diffusion(), peers_sigmas.comfyui()
    functions: dict[str, Callable[[str], Any]] = {}
    if sampling is not None:
        functions["k-diffusion"] = lambda name: getattr(sampling, f"sample_{name}")
    if samplers is not None:
        functions["ComfyUI"] = lambda name: samplers.sampler_object(name).sampler_function
    found = []
    problem: Any = types.SimpleNamespace(flow=False)
    for package, table in SIGMAS.items():
        if package not in functions:
            continue
        host = peers_sigmas.model_sampling(problem).to(x.device) if package == "ComfyUI" else None
        sigmas = torch.tensor(GRID.sigma, dtype=torch.float32, device=x.device)
        for name, form in table.items():
            if name in TREES and x.numel() > TREE_NUMEL:
                continue
            function, model = functions[package](name), peers_sigmas.Model(denoiser, host)
            found.append(Loop(package, name, form, *facts[form], _nothing, _call(function, model, x, sigmas)))
    return found


def _call(function: Any, model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> Callable[[], Any]:
    def call() -> None:
        with quiet():
            function(model, x, sigmas, extra_args={"seed": 0}, callback=None, disable=True)

    return call


def _diffusers_loops(x: torch.Tensor, denoiser: Denoiser, facts: dict[str, Facts]) -> list[Loop]:
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return []
    found = []
    problem: Any = types.SimpleNamespace(flow=False, frame=FRAME, sigma_max=float(GRID.sigma[0]))
    for form, name, options in DIFFUSERS:
        made = peers_diffusers.scheduler(name, options, problem)

        def setup(made: Any = made) -> None:
            with quiet():
                made.set_timesteps(STEPS, device=x.device)

        def loop(made: Any = made) -> None:
            peers_diffusers.run(made, denoiser, x)

        shown = name.removesuffix("Scheduler") + "".join(f" {v}" for v in options.values())
        found.append(Loop("diffusers", shown, form, *facts[form], setup, loop))
    return found

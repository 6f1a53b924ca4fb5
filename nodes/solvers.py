"""The solver nodes: each makes a SAMPLER from one solver of ``samplers`` and its options."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from .sampling import make_sampler
from .widgets import inputs, option_values, step_list_problem

if TYPE_CHECKING:
    from ..samplers import Recipe

TRIAL_STEPS = 60  # divisible by every order, so that no option fails for the number of steps alone
FEW_TRIAL_STEPS = 12  # for correctors that plan anew for many grids: their time grows with the square of the steps


@lru_cache(maxsize=64)
def checked(recipe: Recipe) -> Recipe:
    """Resolves ``recipe`` once on a grid that suits every solver, so that a bad option shows in the node that has it.

    Its start transform, if any, was checked by its own node: how far it goes depends on the model's sigmas.
    """
    from ..samplers import frames, grids
    from ..samplers.calibration.ratios import trial_grid
    from ..samplers.errors import CalibrationWarning
    from ..samplers.registry import BOUND, REPLANNERS
    from ..samplers.solvers.fitted import trial_grid as fitted_grid

    if recipe.solver in BOUND:  # a fitted plan runs on its own levels alone
        grid = fitted_grid(recipe.options["calibration"])
        recipe.resolve(grid.frame, grid)
        return recipe
    steps = FEW_TRIAL_STEPS if any(name in REPLANNERS for name, _ in recipe.correctors) else TRIAL_STEPS
    for options in (recipe.options, *(o for _, o in recipe.correctors)):
        listed = options.get("disable_corrector", options.get("disable", ()))
        while listed and max(listed) >= steps and steps < 10_000:
            steps *= 2
    frame = frames.linear_vp().unit_alpha()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # said when sampling: this is not the grid that will be used
        grid = trial_grid(recipe) or grids.uniform_lambda(frame, steps, end="stop")
        replace(recipe, start=None).resolve(grid.frame, grid)
    return recipe


class SolverNode:
    """What all solver nodes share. A subclass names its solver, the options it shows, and its words."""

    SOLVER: ClassVar[str]
    SHOWN: ClassVar[tuple[str, ...]]
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    DISPLAY_NAME: ClassVar[str]

    CATEGORY = "FewStep/solvers"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("For SamplerCustom, SamplerCustomAdvanced, FewStep's KSampler, or a corrector node.",)
    FUNCTION = "build"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_options

        return {"required": inputs(solver_options(cls.SOLVER), cls.SHOWN, cls.CHANGES)}

    def build(self, **widgets: Any) -> tuple[Any]:
        """The SAMPLER; raises OptionError for options that do not go together."""
        return self._build(self.SOLVER, widgets)

    @staticmethod
    def _build(solver: str, widgets: Mapping[str, Any]) -> tuple[Any]:
        from ..samplers import Recipe, solver_options

        return (make_sampler(checked(Recipe(solver, option_values(widgets, solver_options(solver))))),)


class FewStepDDIM(SolverNode):
    """DDIM and Euler's method."""

    SOLVER = "ddim"
    SHOWN = ("prediction", "eta", "s_noise")
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "prediction": {"tooltip": "In whose terms the step is written: eps is DDIM as published, flow is Euler on the velocity. "
                                  "The samples are the same."},
        "eta": {"tooltip": "0 is DDIM (Euler); 1 is ancestral sampling (Euler ancestral, DDPM's variance)."},
    }
    DISPLAY_NAME = "DDIM / Euler (FewStep)"
    DESCRIPTION = "First-order steps (Song et al. 2021): Euler's method for every model family. The yardstick for the others."
    SEARCH_ALIASES: ClassVar[list[str]] = ["euler", "euler ancestral", "ddpm"]


class FewStepDPMSolverMultistep(SolverNode):
    """DPM-Solver++ multistep."""

    SOLVER = "dpm_solver_multistep"
    SHOWN = ("order", "prediction", "solver_type", "lower_order_final", "thresholding")
    DISPLAY_NAME = "DPM-Solver++ Multistep (FewStep)"
    DESCRIPTION = (
        "DPM-Solver++ (2M, 3M) with data prediction, DPM-Solver with noise prediction (Lu et al. 2022). One evaluation per "
        "step. Orders 4 to 6 need solver_type exact. The usual choice for 10 to 20 guided steps."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["dpmpp_2m", "dpm++ 2m", "dpmpp_3m", "dpm solver"]


class FewStepDPMSolverSinglestep(SolverNode):
    """DPM-Solver++ singlestep."""

    SOLVER = "dpm_solver_singlestep"
    SHOWN = ("order", "prediction", "solver_type", "allocation", "inner", "thresholding")
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "order": {"high": 3, "tooltip": "Evaluations per full step: 1, 2 or 3. The sigmas count evaluations, not full steps."},
        "solver_type": {"tooltip": "Form of the higher-order terms: dpmsolver (midpoint) or taylor (Heun), as published."},
    }
    DISPLAY_NAME = "DPM-Solver++ Singlestep (FewStep)"
    DESCRIPTION = (
        "DPM-Solver(++) that needs no past steps (Lu et al. 2022): 'DPM-Solver-fast'. The number of steps is the number of "
        "evaluations. Good at low guidance and after a change of model between steps."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["dpmpp_2s", "dpm_fast", "dpm solver"]


class FewStepDPMSolverAdaptive(SolverNode):
    """DPM-Solver with step-size control."""

    SOLVER = "dpm_solver_adaptive"
    SHOWN = ("order", "prediction", "solver_type", "atol", "rtol", "h_init", "theta", "thresholding")
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "order": {"low": 2, "high": 3, "tooltip": "3: DPM-Solver-23; 2: DPM-Solver-12."},
        "solver_type": {**FewStepDPMSolverSinglestep.CHANGES["solver_type"], "advanced": True},
    }
    DISPLAY_NAME = "DPM-Solver Adaptive (FewStep)"
    DESCRIPTION = (
        "Chooses its own steps between the first and the last sigma so that the error stays below the tolerances. How many "
        "evaluations that takes is not known ahead. A batch shares one step size."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["dpm_adaptive", "dpm-solver-23"]


class FewStepDPMSolverSDE(SolverNode):
    """DPM-Solver++ SDE, multistep or singlestep."""

    SOLVER = "dpm_solver_sde_multistep"
    METHODS: ClassVar[dict[str, str]] = {"multistep": "dpm_solver_sde_multistep", "singlestep": "dpm_solver_sde_singlestep"}
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "order": {"high": 3, "tooltip": "multistep only: 2 is 2M SDE, 3 is 3M SDE. Needs at least that many steps."},
        "solver_type": {"tooltip": "multistep of order 2 only: midpoint or Heun weight of the second-order term."},
        "eta": {"high": 10.0, "tooltip": "Share of the stochastic process: 1 is the full SDE, 0 its ODE."},
    }
    DISPLAY_NAME = "DPM-Solver++ SDE (FewStep)"
    DESCRIPTION = (
        "Stochastic DPM-Solver++: multistep (2M, 3M SDE; one evaluation per step) or singlestep (SDE; two per step). Fresh "
        "noise mends errors of early steps, at the price of more steps. Each sample has its own noise, the same in any batch."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_options

        single, multi = (solver_options(cls.METHODS[m]) for m in ("singlestep", "multistep"))
        method = (list(cls.METHODS), {
            "default": "multistep", "tooltip": "multistep builds on past steps; singlestep evaluates twice in every step.",
        })
        return {"required": {
            "method": method, **inputs({**single, **multi}, ("order", "eta", "s_noise", "solver_type", "r"), cls.CHANGES),
        }}

    def build(self, **widgets: Any) -> tuple[Any]:
        """The SAMPLER of the chosen method."""
        return self._build(self.METHODS[widgets.pop("method")], widgets)


class FewStepUniPC(SolverNode):
    """UniPC."""

    SOLVER = "unipc"
    SHOWN = ("order", "variant", "prediction", "lower_order_final", "corrector", "disable_corrector", "thresholding")
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "lower_order_final": {
            "advanced": True,
            "tooltip": "Lowers the order step by step towards the end, as published; keep it on with few steps.",
        },
    }
    DISPLAY_NAME = "UniPC (FewStep)"
    DESCRIPTION = (
        "Predictor and corrector of any order at one evaluation per step (Zhao et al. 2023), made for 5 to 10 steps. "
        "Correct for flow models too."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["uni_pc", "uni_pc_bh2", "unip"]

    @classmethod
    def VALIDATE_INPUTS(cls, disable_corrector: str | None = None) -> bool | str:
        """The host cannot check a list of numbers in a text."""
        return step_list_problem("disable_corrector", disable_corrector)


class FewStepDEIS(SolverNode):
    """DEIS, Adams-Bashforth form."""

    SOLVER = "deis_ab"
    SHOWN = ("basis", "ab_order")
    DISPLAY_NAME = "DEIS (FewStep)"
    DESCRIPTION = (
        "Exponential Adams-Bashforth steps (Zhang and Chen 2023): past noise predictions are extrapolated in the model's time "
        "(tAB), in rho, or in log rho. One evaluation per step; strong on unguided models."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["deis tab", "tab3", "rhoab"]


class FewStepDEISRungeKutta(SolverNode):
    """DEIS, Runge-Kutta form."""

    SOLVER = "deis_rk"
    SHOWN = ("tableau",)
    DISPLAY_NAME = "DEIS Runge-Kutta (FewStep)"
    DESCRIPTION = (
        "Runge-Kutta methods in rho (Zhang and Chen 2023): every step takes as many evaluations as the method has stages, so "
        "use a half or a third of the steps. 2heun is EDM's deterministic sampler."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["heun", "rk4", "rhork", "runge kutta"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_options
        from ..samplers.solvers.deis_rk import TABLEAUS

        named = replace(solver_options(cls.SOLVER)["tableau"], choices=tuple(TABLEAUS))
        return {"required": inputs({"tableau": named}, cls.SHOWN, cls.CHANGES)}


class FewStepIPNDM(SolverNode):
    """iPNDM."""

    SOLVER = "ipndm"
    SHOWN = ("order",)
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "order": {"high": 4, "tooltip": "Past outputs used: 1 (DDIM) to 4. Needs at least that many steps."},
    }
    DISPLAY_NAME = "iPNDM (FewStep)"
    DESCRIPTION = (
        "DDIM on a fixed combination of past noise predictions (Zhang and Chen 2023). One evaluation per step. Made for evenly "
        "spaced steps: combine it with the schedule uniform_t."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["pndm", "plms"]


class FewStepPNDM(SolverNode):
    """PNDM."""

    SOLVER = "pndm"
    SHOWN = ("order",)
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "order": {"low": 2, "high": 4, "tooltip": "4: F-PNDM, its first three steps take four evaluations each. 2: S-PNDM, its "
                                                  "first step takes two. 3 does not exist."},
    }
    DISPLAY_NAME = "PNDM (FewStep)"
    DESCRIPTION = (
        "Pseudo numerical methods (Liu et al. 2022): iPNDM with a Runge-Kutta start, so it takes more evaluations than steps. "
        "Made for evenly spaced steps: combine it with the schedule uniform_t."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["f-pndm", "s-pndm", "plms"]


class FewStepGradientEstimation(SolverNode):
    """Gradient estimation."""

    SOLVER = "gradient_estimation"
    SHOWN = ("gamma",)
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gamma": {"low": 0.0, "high": 5.0, "tooltip": "How far the noise prediction is extrapolated beyond the last one: 1 is "
                                                      "DDIM, 2 as published."},
    }
    DISPLAY_NAME = "Gradient Estimation (FewStep)"
    DESCRIPTION = (
        "Euler's steps on a noise prediction that is extrapolated from the last one (Permenter and Yuan 2024). One evaluation "
        "per step, of order 1; ComfyUI's gradient_estimation. On a flow model put the Sigma Clock behind it for the same."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["gradient_estimation", "ge"]


NODES = (
    FewStepDDIM, FewStepDPMSolverMultistep, FewStepDPMSolverSinglestep, FewStepDPMSolverAdaptive, FewStepDPMSolverSDE,
    FewStepUniPC, FewStepDEIS, FewStepDEISRungeKutta, FewStepIPNDM, FewStepPNDM,
    FewStepGradientEstimation,
)

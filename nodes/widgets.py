"""From a solver's options to the host's widgets. Defaults and choices come from the solver itself; words stand here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..samplers.registry import Option

# lower_order_final of solvers whose published rule depends on the number of steps
LOWER_ORDER = {"published": True, "always": "always", "never": False}


class Word(NamedTuple):
    """What an option's widget says, and the range of a number."""

    tooltip: str
    low: float = 0.0
    high: float = 1.0
    advanced: bool = False


WORDS: dict[str, Word] = {
    "ab_order": Word("Degree of the polynomial through past outputs; the order of convergence is one more. 0 is DDIM; 2 or 3 "
                     "is usual. Needs ab_order + 1 steps.", 0, 3),
    "allocation": Word("fast spends every evaluation, with lower orders at the end; fixed uses one order throughout and needs "
                       "a number of steps that it divides.", advanced=True),
    "atol": Word("Absolute tolerance of the step-size control, per latent value. Smaller means more evaluations.", 1e-5, 10.0),
    "basis": Word("Variable in which past outputs are extrapolated: t is the model's own time (published tAB, the best for "
                  "most models), log_rho also suits models without one, linear_t is the time of one linear schedule whatever "
                  "the model's (ComfyUI's deis), rho is for comparison."),
    "c_max": Word("Strength of the mix at the end, where there is little noise. The authors' value is not known; 0.1 is "
                  "cautious, above 0.5 it mostly adds error.", 0.0, 1.0),
    "c_min": Word("Strength of the mix at the start.", 0.0, 1.0, advanced=True),
    "clamp": Word("Keeps every step going forward, from noise to picture. The authors' code does not.", advanced=True),
    "corrector": Word("Re-uses the next step's evaluation to correct the step before it; costs nothing. Off leaves the "
                      "predictor UniP."),
    "corrector_order": Word("Evaluations that a step is corrected with, the new one among them; costs nothing. 0 is no "
                            "corrector.", 0, 4, advanced=True),
    "cutoff": Word("Training time up to which nothing is shifted, of 1000. The authors use 200 to 400.", 0.0, 999.0),
    "dc_order": Word("Degree of the polynomial through past outputs; the first as many ratios are 1. 2 as published.", 1, 6,
                     advanced=True),
    "disable_corrector": Word("Steps without the corrector, counted from 0, for example '0' or '0, 2'. Leaving out step 0 often "
                              "helps at large guidance. Empty: none.", advanced=True),
    "disable": Word("Steps without the corrector, counted from 0, for example '0' or '0, 2'. Leaving out step 0 often helps at "
                    "large guidance. Empty: none."),
    "eta": Word("Share of fresh noise: 0 is deterministic, 1 the full stochastic process.", 0.0, 1.0),
    "fraction": Word("Share of the steps to jump over, for skip fraction alone. 0.15 to 0.3 is usual; with strong guidance "
                     "less, or mode anchored.", 0.0, 0.9),
    "gamma": Word("tcd only: how much of the noise is renewed in every step. 0 is DDIM; 0.3 suits 4 steps."),
    "guidance_scale": Word("The cfg that is sampled with, for mode guided alone.", 0.0, 100.0, advanced=True),
    "guidance": Word("Guidance scale (cfg) that you sample with. Only for ratios from a polynomial.", 0.0, 100.0),
    "h_init": Word("First step tried, in log signal-to-noise ratio.", 1e-3, 10.0, advanced=True),
    "inner": Word("Where evaluations inside a step lie: grid takes the given sigmas, as published; lambda spreads them evenly "
                  "in log signal-to-noise ratio between the first and the last one.", advanced=True),
    "lower_order_final": Word("Lowers the order in the last steps, which keeps few-step samples stable: published below 10 "
                              "steps only, always, or never."),
    "mode": Word("anchored: one evaluation at the start tells the mean, with prompt, guidance and control inside; safe, and "
                 "costs that one evaluation. mean: the measured mean, free; right where the moments were measured with this "
                 "prompt and guidance. guided: the means with and without prompt at guidance_scale."),
    "order": Word("Order of the method: how many evaluations each step builds on. 2 is safe with guidance, 3 suits unguided "
                  "or lightly guided models. Needs at least that many steps.", 1, 6),
    "c_pseudo": Word("The corrector of the published default: one order more, by leading differences alone. Off is better on the "
                     "models this was tried on.", advanced=True),
    "p_pseudo": Word("The predictor takes leading differences alone; published for 5 steps of unguided pixel models.",
                     advanced=True),
    "predictor_order": Word("Evaluations that a step is predicted from; the first steps use as many as there are. The "
                            "authors advise 2 for strong guidance.", 1, 4),
    "per_channel": Word("Averages statistics measured per element over positions, to use them at another size.", advanced=True),
    "s_max": Word("Bound of the statistics' scale s; 0: none, as published. Large guidance makes it so steep that the corrector "
                  "diverges.", 0.0, 1000.0),
    "snap": Word("Moves every step to the nearest noise level of the statistics, as the authors' code does.", advanced=True),
    "prediction": Word("What the solver builds on: data (x_0) is the stable choice with guidance, noise (eps) suits unguided "
                       "models."),
    "quadrature": Word("exact, or the sums of the authors' code for comparison.", advanced=True),
    "r": Word("Where in the step its inner evaluation lies; 0.5 is the middle.", 0.001, 1.0, advanced=True),
    "rest": Word("tail: the remaining steps, so evaluations are saved. regrid: all steps, made finer, below the jump: no "
                 "evaluation saved, but a smaller error; the better use of few steps."),
    "ratios": Word("One ratio per step, the first two 1, for example '1, 1, 0.81, 0.88, 1.36'. Empty: from the calibration, or "
                   "without one from the published polynomial."),
    "rtol": Word("Relative tolerance of the step-size control. Smaller means more evaluations.", 0.0, 10.0),
    "schedule": Word("How the strength grows: linear in the model's time, constant (c_max), or step, even from evaluation to "
                     "evaluation."),
    "scope": Word("all: the solver works with mixed predictions throughout. leading: only the first-order part of each step "
                  "does. For DDIM both are the same.", advanced=True),
    "sde_end": Word("Noise level, as sigma/alpha, below which none is renewed any more: the last steps solve the ODE.",
                    0.0, 1000.0),
    "sde_start": Word("Noise level from which on noise is renewed, as sigma/alpha: the sigma of noise and v models; on a flow "
                      "model sigma/(1 - sigma), so 10 is its sigma 0.91.", 0.0, 1000.0),
    "simple_order_2": Word("The simpler weights of order 2 that the authors use for few steps. ComfyUI leaves them off.",
                           advanced=True),
    "skip_last": Word("No mix at the evaluation that goes straight into the picture, where it would leave grain."),
    "s_noise": Word("Factor on the added noise. Other values than 1 change what the samples look like on average.", 0.0, 2.0,
                    advanced=True),
    "sigma_skip": Word("Noise level at which the jump ends, for skip sigma; in the model's own sigma.", 0.0, 1e5, advanced=True),
    "skip": Word("How far to jump. auto: as far as the moments were measured to hold; a safe noise level where they were not. "
                 "fraction: over a share of the steps. sigma: to a noise level. A run that starts below it does not jump."),
    "solver_type": Word("Form of the higher-order terms. dpmsolver (midpoint) and taylor (Heun) as published; exact integrates "
                        "the interpolating polynomial and allows orders up to 6."),
    "start": Word("consistency only. state is usual; noise is for one-step models that start at a low time from plain noise "
                  "(DMD2 in one step): the network then sees unit noise.", advanced=True),
    "tau": Word("Which earlier prediction to move away from: that of the first evaluation, as believed of the paper, or the "
                "previous one.", advanced=True),
    "tableau": Word("Runge-Kutta method; its first digit is the order and nearly always the evaluations per step."),
    "theta": Word("Safety factor of the step size.", 0.01, 1.0, advanced=True),
    "thresholding": Word("Dynamic thresholding of x_0. For pixel-space models only: latents have no fixed range.", advanced=True),
    "variant": Word("bh2 as published for few steps, bh1 for unguided models, vary_coeff with exact weights; "
                    "vary_coeff_official reproduces the authors' code."),
    "window": Word("Width of the window of training times to choose from, of 1000: about 10 to 80, wider for fewer steps. 0 is "
                   "off.", 0, 1000),
    "wiring": Word("paper: a state is re-labelled and the next step starts there. target, label and dpm_solver are what the "
                   "authors' code does for PNDM and DDIM, for DEIS, and for DPM-Solver of order 2 with noise prediction.",
                   advanced=True),
}


def widget(name: str, option: Option, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """The host's description of one option's widget; ``changes`` are fields of its ``Word``."""
    word = WORDS[name]._replace(**changes)
    settings: dict[str, Any] = {"tooltip": word.tooltip}
    if word.advanced:
        settings["advanced"] = True
    if option.choices == tuple(LOWER_ORDER.values()) or set(option.choices or ()) == set(LOWER_ORDER.values()):
        return list(LOWER_ORDER), {"default": _key(LOWER_ORDER, option.default), **settings}
    if option.choices is not None and set(option.choices) == {True, False}:
        return "BOOLEAN", {"default": option.default, **settings}
    if option.choices is not None:
        return list(option.choices), {"default": option.default, **settings}
    if isinstance(option.default, tuple):
        return "STRING", {"default": ", ".join(map(str, option.default)), **settings}
    if isinstance(option.default, int):
        return "INT", {"default": option.default, "min": int(word.low), "max": int(word.high), **settings}
    return "FLOAT", float_widget(option.default, word.low, word.high, **settings)


def float_widget(default: float, low: float, high: float, **settings: Any) -> dict[str, Any]:
    """Settings of a FLOAT widget that keeps every digit the user types."""
    return {"default": float(default), "min": float(low), "max": float(high), "step": 0.001, "round": False, **settings}


def option_values(widgets: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """The solver's options from the widgets' values; widgets that this solver has no option for are left out."""
    values: dict[str, Any] = {}
    for name, value in widgets.items():
        if name not in options:
            continue
        if isinstance(options[name].default, tuple):
            values[name] = step_list(name, value)
        elif name == "lower_order_final" and isinstance(value, str):
            values[name] = LOWER_ORDER[value]
        else:
            values[name] = value
    return values


def step_list(name: str, text: str) -> tuple[int, ...]:
    """Step numbers from '0, 2'; raises OptionError on anything else."""
    from ..samplers.errors import OptionError

    parts = text.replace(",", " ").split()
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise OptionError(f"{name} is {text!r}, expected step numbers from 0 on, separated by commas, such as '0, 2'")
    return tuple(int(part) for part in parts)


def number_list(name: str, text: str) -> tuple[float, ...]:
    """Numbers from '1, 0.9'; raises OptionError on anything else."""
    from ..samplers.errors import OptionError

    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise OptionError(f"{name} is {text!r}, expected numbers separated by commas, such as '1, 1, 0.9, 1.05'") from None


def step_list_problem(name: str, text: str | None) -> bool | str:
    """For VALIDATE_INPUTS: True, or what is wrong. None is a linked input, not known yet."""
    from ..samplers.errors import OptionError

    try:
        step_list(name, text or "")
    except OptionError as error:
        return str(error)
    return True


def _key(table: Mapping[str, Any], wanted: Any) -> str:
    return next(key for key, value in table.items() if value is wanted or (value == wanted and isinstance(wanted, str)))


def inputs(
    options: Mapping[str, Option], names: Iterable[str], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Widgets of several options, in order."""
    return {name: widget(name, options[name], **changes.get(name, {})) for name in names}

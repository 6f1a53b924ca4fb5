"""Named errors. Each message says what was given, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FewStepError(ValueError):
    """Base of every error that this package raises on bad input."""


class ScheduleError(FewStepError):
    """A noise frame or a step grid that no solver can run on."""


class OptionError(FewStepError):
    """An unknown solver, option or choice, or a number outside its range."""


class PlanError(FewStepError):
    """A plan whose rows are inconsistent, or a transform that does not apply to it."""


class DenoiserError(FewStepError):
    """A denoiser returned something that cannot be a prediction of x_0."""


class NoiseError(FewStepError):
    """A noise source that cannot serve the plan (too few tensors, wrong shape, no seed)."""


class CalibrationError(FewStepError):
    """A calibration that cannot be made, read or used: a wrong file, another model, too few samples."""


class AdapterError(FewStepError):
    """An adapter file (LoRA and its relatives) that cannot be read, does not fit the model, or would lose keys."""


class TrainingError(FewStepError):
    """A training run that cannot go on, or a file of one that cannot be used."""


class CalibrationWarning(UserWarning):
    """A calibration may not suit what it is used for; sampling goes on."""


class MissingDependencyError(FewStepError, ImportError):
    """An optional package is needed for what was asked."""


class Interrupted(FewStepError):
    """The run was cancelled between two evaluations."""


def suggest(given: str, known: Iterable[str]) -> str:
    """Returns ``'; did you mean ...?'`` with the nearest known name, or an empty text."""
    near = difflib.get_close_matches(str(given), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_choice(name: str, given: object, known: Iterable[object]) -> None:
    """Raises OptionError unless ``given`` is one of ``known``."""
    known = list(known)
    if given not in known:
        names = [str(k) for k in known]
        raise OptionError(f"{name} is {given!r}, expected one of {', '.join(names)}{suggest(str(given), names)}")


def check_range(name: str, given: float, low: float, high: float) -> None:
    """Raises OptionError unless ``low <= given <= high`` (NaN fails)."""
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not low <= given <= high:
        raise OptionError(f"{name} is {given!r}, expected a number from {low} to {high}")


def check_integer(name: str, given: int, low: int, high: int) -> None:
    """Raises OptionError unless ``given`` is an integer in ``low..high``."""
    if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
        raise OptionError(f"{name} is {given!r}, expected an integer from {low} to {high}")

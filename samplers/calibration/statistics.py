"""Empirical model statistics for DPM-Solver-v3: the object, its file, and the official one."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CalibrationError
from ..frames import Frame
from .fingerprint import Fingerprint
from .store import Calibration, resolve
from .sums import derive

EXPONENT = 200.0  # most that L + S may range over: e^(L+S) must stay a number


@dataclass(frozen=True, eq=False)
class Statistics:
    """What DPM-Solver-v3 knows about a model, by noise level; the same in every frame of the model.

    Attributes:
        lambda_: noise levels [N+1], float64, rising (noise first).
        l, s, b: [N+1, C, 1, 1] (a number per channel), [N+1, C, H, W] (per element) or [N+1, 1, 1, 1], any float type; for 5-D
            latents one axis more.
        meta: JSON values, see ``measure_statistics``.
        sums, terms: the sums [N+1, 10, ...] that they come from (see ``sums``) and of how many terms; None where not known.
    """

    lambda_: np.ndarray
    l: torch.Tensor
    s: torch.Tensor
    b: torch.Tensor
    meta: Mapping[str, Any] = field(default_factory=dict)
    sums: torch.Tensor | None = None
    terms: int = 0

    def __repr__(self) -> str:  # recipes and plans show their options
        return f"Statistics({len(self.lambda_)} levels, {list(self.l.shape[1:])})"

    def __post_init__(self) -> None:
        count, shapes = len(self.lambda_), {name: tuple(getattr(self, name).shape) for name in "lsb"}
        if count < 3 or any(len(shape) < 2 or shape[0] != count for shape in shapes.values()):
            raise CalibrationError(
                f"statistics need at least 3 noise levels and l, s, b for each, got {count} levels and the shapes {shapes}"
            )
        try:
            np.broadcast_shapes(*shapes.values())
        except ValueError:
            raise CalibrationError(f"l, s and b do not fit each other: their shapes are {shapes}") from None
        if not np.all(np.isfinite(self.lambda_)) or not np.all(np.diff(self.lambda_) > 0):
            raise CalibrationError("the statistics' lambdas must be finite and rise strictly, noise first")
        bad = next((name for name in "lsb" if not bool(torch.isfinite(getattr(self, name)).all())), None)
        if bad:
            raise CalibrationError(f"the statistics' {bad} holds NaN or infinity")

    @classmethod
    def plain(cls) -> Statistics:
        """l = 1, s = 0, b = 0 everywhere: DPM-Solver++."""
        one = torch.ones(3, 1, dtype=torch.float64)
        return cls(np.linspace(-100.0, 100.0, 3), one, 0 * one, 0 * one)

    @classmethod
    def of(cls, value: Statistics | Calibration | str) -> Statistics:
        """From a reference to a file, the content of one, or as it is. Raises CalibrationError."""
        return value if isinstance(value, Statistics) else cls.from_calibration(resolve(value, "statistics"))

    @classmethod
    def from_calibration(cls, calibration: Calibration) -> Statistics:
        """Reads the tensors of a calibration; raises CalibrationError if one is missing or does not fit."""
        tensors = calibration.tensors
        missing = [name for name in ("lambda", "l", "s", "b") if name not in tensors]
        if missing:
            raise CalibrationError(f"the statistics have no tensor '{missing[0]}', they hold {', '.join(sorted(tensors))}")
        return cls(
            tensors["lambda"].double().numpy(), tensors["l"], tensors["s"], tensors["b"], calibration.meta, tensors.get("sums"),
            int(calibration.meta.get("terms", 0)),
        )

    @classmethod
    def from_sums(cls, lambda_: np.ndarray, sums: torch.Tensor, terms: int, meta: Mapping[str, Any]) -> Statistics:
        """From the sums over samples (see ``sums``)."""
        found = derive(lambda_, sums, terms, int(meta.get("smoothing", 0)))
        return cls(lambda_, found.l, found.s, found.b, {**meta, "terms": terms}, sums, terms)

    def calibration(self, model: Fingerprint | None = None) -> Calibration:
        """The content of a calibration file."""
        tensors = {"lambda": torch.from_numpy(self.lambda_), "l": self.l, "s": self.s, "b": self.b}
        return Calibration("statistics", tensors if self.sums is None else {**tensors, "sums": self.sums}, self.meta, model)

    @cached_property
    def moments(self) -> torch.Tensor | None:
        """E f, E f', E f^2, E f f' [N+1, 4, ...], or None where the sums are not known."""
        if self.sums is None:
            return None
        return derive(self.lambda_, self.sums, self.terms, int(self.meta.get("smoothing", 0))).moments

    def clamped(self, s_max: float) -> Statistics:
        """With |s| at most ``s_max`` and b to match; raises CalibrationError without the sums."""
        moments = self.moments
        if moments is None:
            raise CalibrationError("clamping s needs the moments of f, which these statistics do not have: measure them anew")
        s = self.s.double().clamp(-s_max, s_max)
        return replace(self, s=s, b=moments[:, 1] - s * moments[:, 0])

    def per_channel(self) -> Statistics:
        """Averaged over positions, so that they fit latents of any size."""
        axes = tuple(range(2, self.l.ndim))
        if self.sums is not None:
            positions = self.sums[0, 0, 0].numel()
            sums = self.sums.sum(tuple(a + 1 for a in axes), keepdim=True)
            return Statistics.from_sums(self.lambda_, sums, self.terms * positions, self.meta)
        return replace(self, **{name: getattr(self, name).double().mean(axes, keepdim=True) for name in "lsb"})

    def curves(self) -> dict[str, list[float]]:
        """l, s and b over the noise levels, averaged over channels and positions."""
        return {name: getattr(self, name).double().flatten(1).mean(1).tolist() for name in "lsb"}

    def ranges(self) -> str:
        """The noise levels, and the least and largest l, s and b, for people."""
        spans = (f"{name} {float(getattr(self, name).min()):.3g} to {float(getattr(self, name).max()):.3g}" for name in "lsb")
        return f"lambda {self.lambda_[0]:.3f} to {self.lambda_[-1]:.3f} in {len(self.lambda_)} levels: " + ", ".join(spans)

    def check_range(self) -> None:
        """Raises CalibrationError if e^(L+S), with L and S the integrals of l and s, would leave the range of numbers."""
        rate = self.l[0].double() + self.s[0].double()
        level = low = high = torch.zeros_like(rate)
        for i, step in enumerate(np.diff(self.lambda_), 1):  # one level after another: full-size statistics are large
            following = self.l[i].double() + self.s[i].double()
            level, rate = level + float(step) * (rate + following) / 2, following
            low, high = torch.minimum(low, level), torch.maximum(high, level)
        width = float((high - low).max())
        if width > EXPONENT:
            raise CalibrationError(
                f"the integral of l + s ranges over {width:.0f}, above {EXPONENT:.0f}: s, from {float(self.s.min()):.3g} to "
                f"{float(self.s.max()):.3g}, is degenerate. Measure with more samples or a number per channel, or set s_max"
            )


def merged(first: Statistics, second: Statistics) -> Statistics:
    """Two measurements with different seeds as one; raises CalibrationError if they differ in anything else."""
    if first.sums is None or second.sums is None:
        raise CalibrationError("statistics without their sums cannot be merged")
    if first.meta.get("seeds") is None or set(first.meta["seeds"]) & set(second.meta.get("seeds") or first.meta["seeds"]):
        raise CalibrationError("both measurements used the same seed, so they hold the same draws: measure one with another seed")
    ignored = {"seeds", "samples", "terms", "gain"}
    settings = [{k: v for k, v in one.meta.items() if k not in ignored} for one in (first, second)]
    different = sorted(k for k in {**settings[0], **settings[1]} if settings[0].get(k) != settings[1].get(k))
    if different or first.sums.shape != second.sums.shape or not np.array_equal(first.lambda_, second.lambda_):
        raise CalibrationError(
            f"the two measurements differ in {', '.join(different) or 'their noise levels or shapes'}; only the seed may differ"
        )
    meta = {
        **settings[0], "seeds": sorted([*first.meta["seeds"], *second.meta["seeds"]]),
        "samples": first.meta["samples"] + second.meta["samples"],
    }
    return Statistics.from_sums(first.lambda_, first.sums + second.sums, first.terms + second.terms, meta)


def read_official(folder: str | Path, frame: Frame, *, t_T: float | None = None, t_0: float | None = None) -> Statistics:
    """Reads the authors' folder of ``l.npz`` and ``sb.npz``, which hold no noise levels: they are uniform in lambda.

    Args:
        folder: its name, ``<t_0>_<N>_<samples>``, gives t_0 where it has that form.
        frame: the model's schedule.
        t_T, t_0: first and last time, by default the frame's.

    Raises CalibrationError for a missing, damaged or pickled file.
    """
    folder = Path(folder)
    named = re.fullmatch(r"([0-9.e-]+)_(\d+)_(\d+)", folder.name)
    arrays: dict[str, torch.Tensor] = {}
    for file, names in (("l.npz", ("l",)), ("sb.npz", ("s", "b"))):
        try:
            with open(folder / file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
                arrays |= {name: torch.from_numpy(np.asarray(content[name], np.float64)) for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CalibrationError(f"'{folder / file}' holds no official statistics ({type(error).__name__}: {error})") from error
    start = frame.time.t_T if t_T is None else t_T
    stop = t_0 if t_0 is not None else float(named[1]) if named else frame.time.t_0
    count = len(arrays["l"])
    if named and int(named[2]) != count - 1:
        raise CalibrationError(f"'{folder.name}' promises {named[2]} steps of lambda, but its arrays have {count - 1}")
    meta = {"source": folder.name, "samples": int(named[3]) if named else 0}
    lambda_ = np.linspace(float(frame.lambda_(start)), float(frame.lambda_(stop)), count)
    return Statistics(lambda_, arrays["l"], arrays["s"], arrays["b"], meta)

"""A long calibration: what it will cost, how far it is, and how it goes on after an interruption."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..errors import CalibrationError

SAVE_EVERY = 5.0  # seconds between writes of the partial state

log = logging.getLogger("fewstep")

Curves = Mapping[str, Sequence[float]]
Report = Callable[[int, int, Curves], None]


class Job:
    """Progress, interruption and resumption of one calibration; use it as a context.

    The calibration calls ``advance`` after every piece of work with its whole state. The state is written beside the final
    file from time to time, and when the context is left, by an interruption above all. A job with the same settings then
    starts from ``resume()`` and must end with the same bits. ``finish`` deletes the state once the result is safe.

    Args:
        total: evaluations of the model that the whole work takes.
        settings: JSON values that fix the work: a partial state of other settings is not taken up.
        partial: where the partial state lives; None keeps none.
        report: called with (done, total, curves) after each piece; may raise to interrupt.
    """

    def __init__(
        self, total: int, settings: Mapping[str, Any], *, partial: Path | None = None, report: Report | None = None
    ) -> None:
        self.total, self.done = total, 0
        self._settings = json.dumps(dict(settings), sort_keys=True, allow_nan=False)
        self._partial, self._report = partial, report
        self._state: dict[str, torch.Tensor] | None = None
        self._written = time.monotonic()

    def resume(self) -> dict[str, torch.Tensor] | None:
        """The state that an interrupted job of the same settings left, or None. Raises CalibrationError if it is damaged."""
        if self._partial is None or not self._partial.exists():
            return None
        try:
            with safe_open(self._partial, "pt") as file:
                meta = file.metadata() or {}
                if meta.get("settings") != self._settings:
                    return None
                self.done = int(meta["done"])
                # copies: a file's tensors lie at any address, and sums of unaligned ones are rounded otherwise
                return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise CalibrationError(
                f"the partial state {self._partial} is damaged ({error}): delete it to start anew"
            ) from error

    def advance(self, evaluations: int, state: Mapping[str, torch.Tensor], curves: Curves | None = None) -> None:
        """Counts a finished piece of work, keeps ``state`` (it is copied) and reports."""
        self.done += evaluations
        self._state = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
        if time.monotonic() - self._written > SAVE_EVERY:
            self._write()
        if self._report is not None:
            self._report(self.done, self.total, curves or {})

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._write()  # at the end too: a longer calibration may be interrupted in a later part
        except CalibrationError as failed:
            if error is None:
                raise
            log.warning("FewStep: %s", failed)  # what ended the work, an interruption above all, must reach the host

    def finish(self) -> None:
        """Deletes the partial state: the result is saved."""
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)

    def _write(self) -> None:
        from ..plan_io import write_atomically

        if self._partial is None or self._state is None:
            return
        try:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._partial, to_bytes(self._state, {"settings": self._settings, "done": str(self.done)}))
        except OSError as error:
            raise CalibrationError(f"the partial state could not be written to {self._partial}: {error}") from error
        self._written = time.monotonic()


class Keeper:
    """The state of a job with several parts, each under its own name."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._state: dict[str, torch.Tensor] = dict(job.resume() or {})

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """What was kept of a part, empty if it has not begun."""
        return {key[len(name) + 1 :]: value for key, value in self._state.items() if key.startswith(f"{name}/")}

    def advance(
        self, evaluations: int, name: str, part: Mapping[str, torch.Tensor], curves: Curves | None = None
    ) -> None:
        """Replaces what is kept of a part and tells the job."""
        self._state = {key: value for key, value in self._state.items() if not key.startswith(f"{name}/")}
        self._state.update({f"{name}/{key}": value for key, value in part.items()})
        self.job.advance(evaluations, self._state, curves)

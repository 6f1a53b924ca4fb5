"""The one training loop: draws, rolls out, updates the networks that the objective names, averages, saves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import Interrupted, OptionError, TrainingError, check_integer, check_range
from ..plan_io import write_atomically
from .objective import Batch, Context, Objective
from .optimiser import Optimiser, Updater

FORMAT = 1
MOST_FAILURES = 20
STUDENT = "student"


@dataclass(frozen=True)
class TrainSettings:
    """What a run is made of beside its objective; a checkpoint only goes on under the same ones.

    Attributes:
        iterations: length of the run; learning rates are laid out over it.
        batch: samples an iteration.
        sample_shape: of one state, without the batch.
        prompts: number of prompts; each batch holds them as evenly as it can.
        optimisers: by network, "student" and whatever else the objective updates.
        ema: decay of the student's average, which is the result; it follows faster at first.
        seed: of every draw.
        notes: further facts that must not change between start and resumption (rank, base, ...), JSON values.
    """

    iterations: int
    batch: int
    sample_shape: tuple[int, ...]
    prompts: int
    optimisers: Mapping[str, Optimiser]
    ema: float = 0.99
    seed: int = 0
    notes: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_integer("iterations", self.iterations, 1, 10**9)
        check_integer("batch", self.batch, 1, 10**6)
        check_integer("prompts", self.prompts, 1, 10**9)
        check_range("ema", self.ema, 0.0, 1.0)


class TrainingProgress(NamedTuple):
    """What the callback is given after each iteration: ``step`` of ``total`` done, and the losses of its updates."""

    step: int
    total: int
    losses: dict[str, float]


class Trainer:
    """Everything that changes during a training run.

    Args:
        objective: what to train for.
        context: the networks, which must use the very tensors of ``networks``.
        networks: trained tensors by network and name, all on one device: "student", and "critic" if the objective needs it.
        settings: see `TrainSettings`.
        draws: in ``context``; its generators belong to this run from here on.

    Raises:
        OptionError: the objective needs what is not given, or updates a network without tensors or optimiser.
    """

    def __init__(
        self, objective: Objective, context: Context, networks: Mapping[str, Mapping[str, nn.Parameter]],
        settings: TrainSettings,
    ) -> None:
        missing = objective.requirements() - {"prompts", *(["critic"] if context.critic else [])}
        if missing:
            raise OptionError(f"the objective needs {', '.join(sorted(missing))}, which this run does not have")
        if set(networks) != set(settings.optimisers) or STUDENT not in networks:
            raise OptionError(f"networks {sorted(networks)} and optimisers {sorted(settings.optimisers)} must be the same names")
        self.objective, self.context, self.settings = objective, context, settings
        self.step = self.failures = 0
        self.history: list[list[float]] = []
        self._updaters = {name: Updater(settings.optimisers[name], tensors) for name, tensors in networks.items()}
        with torch.inference_mode(False):
            self.average = {name: p.detach().clone() for name, p in networks[STUDENT].items()}

    def run(
        self, *, checkpoint: Path | None = None, save_every: int = 500,
        callback: Callable[[TrainingProgress], None] | None = None, should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Trains up to the last iteration, from wherever the run stands.

        Args:
            checkpoint: file to save to every ``save_every`` iterations, at the end, and when stopped.
            callback: called after every iteration; what it raises passes through.
            should_stop: asked before every iteration; True saves and raises Interrupted.

        Raises:
            Interrupted: ``should_stop`` said so.
            TrainingError: the 20th update whose loss or gradient was not finite (each is skipped).
        """
        # a host may run its nodes without gradients; tensors made in its inference mode could not be trained
        with torch.inference_mode(False), torch.enable_grad():
            while self.step < self.settings.iterations:
                if should_stop is not None and should_stop():
                    raise Interrupted(f"training was stopped after {self.step} iterations{self._saved(checkpoint)}")
                losses = self._iterate()
                if self.failures >= MOST_FAILURES:
                    raise TrainingError(
                        f"{self.failures} updates had a loss or gradient that is NaN or infinite, the last in iteration "
                        f"{self.step}; lower the learning rates. The last good weights stand{self._saved(checkpoint)}"
                    )
                if callback is not None:
                    callback(TrainingProgress(self.step, self.settings.iterations, losses))
                if self.step % save_every == 0:
                    self._saved(checkpoint)
            self._saved(checkpoint)

    def _iterate(self) -> dict[str, float]:
        settings, draws = self.settings, self.context.draws
        student = self._updaters[STUDENT].parameters
        like = next(iter(student.values())).new_empty(settings.batch, *settings.sample_shape)
        batch = Batch(draws.noise(like), draws.prompts(settings.prompts, settings.batch))
        with torch.no_grad():
            states = self.objective.roll(batch, self.context)
        losses: dict[str, float] = {}
        for name in self.objective.updates(self.step):
            updater = self._updaters[name]
            loss = self.objective.loss(name, batch, states, self.context)
            done = updater.update(loss, updater.settings.rate(self.step, settings.iterations))
            self.failures += not done
            losses[name] = loss.item()
        # the average follows closely at first, else it would remember the untrained adapter
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        for name, value in student.items():
            self.average[name].lerp_(value.detach(), 1 - decay)
        self.step += 1
        self.history.append([losses.get(name, float("nan")) for name in sorted(self._updaters)])
        return losses

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The student with its averaged weights, for previews and results."""
        student = self._updaters[STUDENT].parameters
        kept = {name: p.detach().clone() for name, p in student.items()}
        try:
            for name, p in student.items():
                p.data.copy_(self.average[name])
            yield
        finally:
            for name, p in student.items():
                p.data.copy_(kept[name])

    # checkpoints
    def facts(self) -> dict[str, Any]:
        """Settings and objective as JSON values: what a checkpoint is compared by."""
        facts = asdict(self.settings)
        facts["optimisers"] = {name: asdict(o) for name, o in self.settings.optimisers.items()}
        found: dict[str, Any] = json.loads(json.dumps({**facts, "objective": self.objective.preset()}))
        return found

    def save(self, path: str | Path) -> None:
        """Writes everything needed to go on, as one safetensors file that appears whole or not at all.

        Raises TrainingError where it cannot be written (a full disk, no rights).
        """
        path = Path(path)
        tensors = {f"{network}/{key}": value for network, u in self._updaters.items() for key, value in u.state().items()}
        tensors |= {f"average/{key}": value for key, value in self.average.items()}
        tensors |= {f"generator/{key}": g.get_state() for key, g in self.context.draws.generators.items()}
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64)
        header = {"format": FORMAT, "step": self.step, "failures": self.failures, "facts": self.facts()}
        stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save(stored, {"fewstep_training": json.dumps(header)}))
        except OSError as error:
            raise TrainingError(f"{path.name} could not be written to {path.parent}: {error.strerror or error}") from error

    def resume(self, path: str | Path) -> None:
        """Goes on from a checkpoint; the result is bit for bit that of an unbroken run.

        Raises TrainingError if the file is not a checkpoint, or of other settings (the differences are listed).
        """
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["fewstep_training"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(f"{path.name} is not a FewStep training checkpoint: {error}") from error
        changed = _differences(header["facts"], self.facts()) if header["format"] == FORMAT else ["format"]
        if changed:
            raise TrainingError(f"{path.name} was written with other settings: {'; '.join(changed)}. Delete it or restore them")
        for network, updater in self._updaters.items():
            updater.restore(_part(tensors, network))
        self.average = {key: value.to(self.average[key]) for key, value in _part(tensors, "average").items()}
        for key, state in _part(tensors, "generator").items():
            self.context.draws.generators[key].set_state(state)
        self.step, self.failures, self.history = header["step"], header["failures"], tensors["history"].tolist()

    def _saved(self, path: Path | None) -> str:
        """Saves if there is a path; returns words for a message."""
        if path is None:
            return ""
        self.save(path)
        return f"; saved in {path.name}"


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Each setting that differs, as ``name old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)]
    return [] if old == new else [f"{where} {old!r} -> {new!r}"]

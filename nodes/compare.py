"""Several samplers and step counts side by side: one labelled picture, and the numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from .compare_report import Cell, as_csv, as_text, grid_picture
from .frames import frame_of
from .host import HostError, get_host
from .ksampler import preset
from .progress import as_image
from .sampling import carried_recipe, make_sampler, sample_recipe
from .schedule import end_widget, schedule_widget
from .schedule import schedule as make_schedule
from .widgets import float_widget, step_list

if TYPE_CHECKING:
    from ..samplers import Recipe
    from ..samplers.grids import End

SAMPLERS = 6
MOST_STEPS = 1000
POINTS = 65_536  # of a latent, at which predictions are compared


def step_counts(text: str) -> tuple[int, ...]:
    """Up to six numbers of steps; raises OptionError."""
    from ..samplers.errors import OptionError

    counts = tuple(dict.fromkeys(step_list("steps", text)))
    if not 1 <= len(counts) <= 6 or not all(1 <= n <= MOST_STEPS for n in counts):
        raise OptionError(f"steps is {text!r}, expected one to six numbers from 1 to {MOST_STEPS}, such as '4, 8, 16'")
    return counts


def short_label(recipe: Recipe) -> str:
    """The solver and its correctors with the options that are not the defaults."""
    from ..samplers import solver_options

    def part(name: str, options: Mapping[str, Any]) -> str:
        known = solver_options(name)
        changed = ", ".join(f"{k}={v}" for k, v in options.items() if v != known[k].default)
        return f"{name}({changed})" if changed else name

    return " + ".join(part(name, options) for name, options in ((recipe.solver, recipe.options), *recipe.correctors))


class FewStepCompare:
    """The picture that people post."""

    DISPLAY_NAME = "Compare (FewStep)"
    CATEGORY = "FewStep"
    DESCRIPTION = (
        "Runs up to six samplers at several step counts from the same noise and shows the results in one labelled grid: the "
        "difference to a run with many steps, at the end and evaluation by evaluation, evaluations of the model, time per step. "
        "The numbers come as text and as CSV too."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["xy plot", "grid", "benchmark", "sampler comparison"]
    RETURN_TYPES = ("IMAGE", "STRING", "STRING")
    RETURN_NAMES = ("grid", "table", "csv")
    OUTPUT_TOOLTIPS = (
        "Samplers in rows, step counts in columns.", "The numbers as a table.", "The numbers as comma-separated values.",
    )
    FUNCTION = "compare"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to be sampled."}),
                "positive": ("CONDITIONING", {"tooltip": "What the pictures should show."}),
                "negative": ("CONDITIONING", {"tooltip": "What to keep away from; not evaluated at cfg 1."}),
                "latent_image": ("LATENT", {"tooltip": "The latent to fill; the grid shows the first of a batch."}),
                "vae": ("VAE", {"tooltip": "Makes pictures of the latents."}),
                "seed": ("INT", {
                    "default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True,
                    "tooltip": "Decides the noise, the same for all.",
                }),
                "cfg": ("FLOAT", float_widget(4.0, 0.0, 100.0, tooltip="Guidance: how strongly the prompt counts.")),
                "steps": ("STRING", {"default": "4, 8, 16", "tooltip": "Up to six numbers of steps, one column each."}),
                "schedule": schedule_widget(),
                "reference_steps": ("INT", {
                    "default": 100, "min": 0, "max": MOST_STEPS,
                    "tooltip": "Steps of the UniPC run that the others are measured against, on the same schedule; 0: none.",
                }),
            },
            "optional": {
                **{
                    f"sampler_{i}": ("SAMPLER", {"tooltip": "One row of the grid; any SAMPLER."})
                    for i in range(1, SAMPLERS + 1)
                },
                "end": end_widget(),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, steps: str | None = None) -> bool | str:
        """The host cannot check a list of numbers in a text."""
        from ..samplers.errors import OptionError

        try:
            step_counts("1" if steps is None else steps)
        except OptionError as error:
            return str(error)
        return True

    def compare(
        self, model: Any, positive: Any, negative: Any, latent_image: dict[str, Any], vae: Any, seed: int, cfg: float,
        steps: str, schedule: str, reference_steps: int, end: End = "zero", **samplers: Any,
    ) -> dict[str, Any]:
        """(grid, table, csv), the table also for the node. A combination that cannot run is an empty cell with its reason.

        The reference ends in 0 whatever ``end`` is: that is the picture without noise, which both ends are to come near to.
        """
        from ..samplers.errors import FewStepError, OptionError

        rows = [(name, sampler) for name, sampler in sorted(samplers.items()) if sampler is not None]
        if not rows:
            raise OptionError("there is nothing to compare: connect a SAMPLER to sampler_1")

        def run(sampler: Any, count: int, last: End = end) -> Any:
            sigmas = make_schedule(model, schedule, count, end=last)
            return get_host().sample(model, seed, cfg, sampler, sigmas, positive, negative, latent_image)["samples"]

        reference, at_reference, cells = None, list[tuple[Any, Any]](), list[Cell]()
        if reference_steps:
            frame = frame_of(model.get_model_object("model_sampling"))
            recipe = preset("unipc", frame, reference_steps)
            watched = Watched(make_sampler(recipe))
            reference, at_reference = run(watched.sampler, reference_steps, "zero"), watched.calls
            cells.append(Cell(f"reference: {short_label(recipe)}", reference_steps, picture=_picture(vae, reference)))
        for name, sampler in rows:
            watched = Watched(sampler)
            label = f"{name[-1]}: {watched.label}"
            for count in step_counts(steps):
                watched.calls, watched.seconds = [], None
                try:
                    result = run(watched.sampler, count)
                except FewStepError as error:
                    cells.append(Cell(label, count, error=str(error)))
                    continue
                seconds = None if watched.seconds is None else watched.seconds / count
                cells.append(Cell(
                    label, count, len(watched.calls) or None, seconds, _difference(result, reference), _picture(vae, result),
                    by_evaluation=_by_evaluation(watched.calls, at_reference),
                ))
        text, csv = as_text(cells), as_csv(cells)
        return {"ui": {"text": [text]}, "result": (as_image(grid_picture(cells)), text, csv)}


class Watched:
    """A sampler that runs as it is while its evaluations are counted, timed and kept.

    Attributes:
        label: for people.
        sampler: to be run in its place; where the given one is not made of a function, that one, unwatched.
        calls: per evaluation log sigma and the x_0 prediction of the first sample, at up to POINTS points on its device.
        seconds: the time of the last run, without loading the model.
    """

    def __init__(self, sampler: Any) -> None:
        host, recipe = get_host(), carried_recipe(sampler)
        function = getattr(sampler, "sampler_function", None)
        named = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
        self.label = named if recipe is None else short_label(recipe)
        self.calls: list[tuple[Any, Any]] = []
        self.seconds: float | None = None
        self.sampler = sampler
        if recipe is not None:
            self.sampler = host.make_sampler(partial(self._sample, inner=sample_recipe), {"recipe_json": recipe.to_json()})
            return
        with suppress(HostError):
            self.sampler = host.wrap_sampler(sampler, self._sample, {})

    def _sample(self, model: Any, *args: Any, inner: Callable[..., Any], **more: Any) -> Any:
        self.calls.clear()
        start = time.perf_counter()
        result = inner(_Keeping(model, self.calls), *args, **more)
        bool((result == result).all())  # waits for the device
        self.seconds = time.perf_counter() - start
        return result


class _Keeping:
    """The host's model, noting each evaluation."""

    def __init__(self, model: Any, calls: list[tuple[Any, Any]]) -> None:
        self._model, self._calls = model, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Any, sigma: Any, *args: Any, **more: Any) -> Any:
        denoised = self._model(x, sigma, *args, **more)
        flat = denoised[:1].reshape(-1)
        self._calls.append((sigma.reshape(-1)[0].log(), flat[:: max(1, len(flat) // POINTS)].clone()))
        return denoised


def _by_evaluation(calls: Sequence[tuple[Any, Any]], reference: Sequence[tuple[Any, Any]]) -> list[float]:
    """Relative root mean square differences of the predictions to those of the reference at the same noise level.

    The reference's are interpolated linearly in log sigma between its evaluations.
    """
    import numpy as np

    if not calls or len(reference) < 2:
        return []
    known = sorted((float(level), values.float().cpu().numpy()) for level, values in reference if float(level) > -math.inf)
    levels, table = np.array([level for level, _ in known]), np.stack([values for _, values in known])
    found = []
    for level, values in calls:
        place = float(np.clip(np.interp(float(level), levels, np.arange(len(levels))), 0, len(levels) - 1))
        i = min(int(place), len(levels) - 2)
        at = table[i] + (place - i) * (table[i + 1] - table[i])
        found.append(float(np.linalg.norm(values.float().cpu().numpy() - at) / max(np.linalg.norm(at), 1e-12)))
    return found


def _difference(result: Any, reference: Any) -> float | None:
    """Root mean square of the difference, relative to that of the reference."""
    if reference is None:
        return None
    return float((result - reference).float().norm() / reference.float().norm())


def _picture(vae: Any, samples: Any) -> Any:
    """The first picture as uint8 [H, W, 3]."""
    pixels = vae.decode(samples[:1])
    first = pixels.reshape(-1, *pixels.shape[-3:])[0]
    return (first.float().cpu() * 255).round().clamp(0, 255).byte().numpy()


NODES = (FewStepCompare,)

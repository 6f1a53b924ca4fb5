"""Several samplers and step counts side by side: one labelled picture, and the numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .compare_report import Cell, as_csv, as_text, grid_picture
from .frames import frame_of
from .host import get_host
from .ksampler import preset
from .progress import as_image
from .sampling import make_sampler, recipe_of, sample_recipe
from .schedule import schedule as make_schedule
from .schedule import schedule_widget
from .widgets import float_widget, step_list

if TYPE_CHECKING:
    from ..samplers import Recipe

SAMPLERS = 6
MOST_STEPS = 1000


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
        "difference to a run with many steps, evaluations of the model, time per step. The numbers come as text and as CSV too."
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
                f"sampler_{i}": ("SAMPLER", {"tooltip": "One row of the grid; any SAMPLER."}) for i in range(1, SAMPLERS + 1)
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
        steps: str, schedule: str, reference_steps: int, **samplers: Any,
    ) -> dict[str, Any]:
        """(grid, table, csv), the table also for the node. A combination that cannot run is an empty cell with its reason."""
        from ..samplers.errors import FewStepError, OptionError

        rows = [(name, sampler) for name, sampler in sorted(samplers.items()) if sampler is not None]
        if not rows:
            raise OptionError("there is nothing to compare: connect a SAMPLER to sampler_1")

        def run(sampler: Any, count: int) -> Any:
            sigmas = make_schedule(model, schedule, count)
            return get_host().sample(model, seed, cfg, sampler, sigmas, positive, negative, latent_image)["samples"]

        reference, cells = None, []
        if reference_steps:
            frame = frame_of(model.get_model_object("model_sampling"))
            recipe = preset("unipc", frame, reference_steps)
            reference = run(make_sampler(recipe), reference_steps)
            cells.append(Cell(f"reference: {short_label(recipe)}", reference_steps, picture=_picture(vae, reference)))
        for name, sampler in rows:
            label, counted, calls = _counted(sampler)
            label = f"{name[-1]}: {label}"
            for count in step_counts(steps):
                calls.clear()
                start = time.perf_counter()
                try:
                    result = run(counted, count)
                except FewStepError as error:
                    cells.append(Cell(label, count, error=str(error)))
                    continue
                seconds = (time.perf_counter() - start) / count
                cells.append(Cell(
                    label, count, len(calls) or None, seconds, _difference(result, reference), _picture(vae, result),
                ))
        text, csv = as_text(cells), as_csv(cells)
        return {"ui": {"text": [text]}, "result": (as_image(grid_picture(cells)), text, csv)}


def _counted(sampler: Any) -> tuple[str, Any, list[None]]:
    """(label, the same sampler, a list that gets an entry per evaluation); other packs' samplers are not counted."""
    from ..samplers.errors import OptionError

    calls: list[None] = []
    try:
        recipe = recipe_of(sampler)
    except OptionError:
        function = getattr(sampler, "sampler_function", None)
        return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_"), sampler, calls

    class Counted:
        """The host's model, counting."""

        def __init__(self, model: Callable[..., Any]) -> None:
            self.model, self.inner_model = model, model.inner_model  # type: ignore[attr-defined]

        def __call__(self, *args: Any, **more: Any) -> Any:
            calls.append(None)
            return self.model(*args, **more)

    def sample(model: Any, *args: Any, **more: Any) -> Any:
        return sample_recipe(Counted(model), *args, **more)

    return short_label(recipe), get_host().make_sampler(sample, {"recipe_json": recipe.to_json()}), calls


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

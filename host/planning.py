"""What ``fewstep plan`` needs: frames by name, options from text, and the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..nodes.schedule import even_end
from ..nodes.widgets import option_values
from ..samplers import frames, grids, make_plan, solver_options
from ..samplers.errors import OptionError, check_choice

FRAMES = {
    "discrete": "the 1000 steps of Stable Diffusion's noise schedule, as ComfyUI runs it (alpha = 1)",
    "flow": "rectified flow, alpha = 1 - t, sigma = t",
    "edm": "alpha = 1, time = sigma from 80 to 0.002",
    "linear_vp": "continuous variance-preserving schedule, beta from 0.1 to 20",
    "cosine_vp": "the cosine schedule",
}


def frame_by_name(name: str) -> frames.Frame:
    """One of ``FRAMES``."""
    check_choice("frame", name, FRAMES)
    if name == "discrete":
        from ..demo.schedule import alphas_cumprod

        return frames.discrete_vp(alphas_cumprod()).unit_alpha()
    return {"flow": frames.flow, "edm": frames.edm, "linear_vp": frames.linear_vp, "cosine_vp": frames.cosine_vp}[name]()


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """{'order': 3, ...} from 'order=3'; values are read as JSON where they can be, else as text."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise OptionError(f"an option is written name=value, got {text!r}")
        try:
            options[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            options[name.strip()] = value.strip()
    return options


def with_order(solver: str, options: Mapping[str, Any], order: int | None) -> dict[str, Any]:
    """``options`` with the order under the name that the solver has for it."""
    if order is None:
        return dict(options)
    known = solver_options(solver)
    name = next((n for n in ("order", "ab_order") if n in known), None)
    if name is None:
        raise OptionError(f"{solver} has no order to choose, its options are {', '.join(known)}")
    return {**options, name: order}


def plan_from(
    solver: str, frame: str, schedule: str, steps: int, end: grids.End, options: Mapping[str, Any]
) -> Any:
    """The plan of a solver on a named frame and schedule; options may be written as in the node's widgets."""
    known = solver_options(solver)
    check_choice("schedule", schedule, grids.GRIDS)
    texts = {n: ", ".join(map(str, v)) if isinstance(v, list) else str(v) if isinstance(known[n].default, tuple) else v
             for n, v in options.items() if n in known}
    unknown = {n: v for n, v in options.items() if n not in known}  # make_plan names them
    chosen = frame_by_name(frame)
    grid = grids.GRIDS[schedule](chosen, steps, end=end, **even_end(chosen, schedule, steps, end))
    return make_plan(solver, chosen, grid, **option_values(texts, known), **unknown)

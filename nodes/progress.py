"""What a long node shows while it works: evaluations done, time left, and its curves as a small picture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SIZE = (480, 270)
REDRAW = 0.5  # seconds between pictures
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # told apart by colour-blind people too


def reporter(update: Callable[[int, str, Any], None]) -> Callable[[int, int, Mapping[str, Sequence[float]]], None]:
    """A ``Job`` report for the host's progress bar ``update(done, text, picture)``."""
    start, first, drawn = time.monotonic(), -1, -math.inf

    def report(done: int, total: int, curves: Mapping[str, Sequence[float]]) -> None:
        nonlocal first, drawn
        now = time.monotonic()
        first = done if first < 0 else first
        text = f"{done} of {total} evaluations"
        if done > first:  # what a resumed job had done before says nothing about its speed now
            text += f", {duration((now - start) * (total - done) / (done - first))} left"
        picture = None
        if curves and now - drawn >= REDRAW:
            picture, drawn = chart(curves), now
        update(done, text, picture)

    return report


def duration(seconds: float) -> str:
    """A rough length of time."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def chart(curves: Mapping[str, Sequence[float]], size: tuple[int, int] = SIZE) -> Any:
    """A PIL image of curves over their index, one vertical scale, logarithmic where all are positive and wide apart."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", size, "#202020")
    draw = ImageDraw.Draw(picture)
    values = [v for curve in curves.values() for v in curve if math.isfinite(v)]
    if not values:
        return picture
    logarithmic = min(values) > 0 and max(values) > 20 * min(values)
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    left, top, right, bottom = 62, 12 + 14 * len(curves), size[0] - 12, size[1] - 14
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        value = low + share * (high - low)
        draw.line([(left, y), (right, y)], fill="#505050")
        draw.text((4, y - 6), f"{10**value if logarithmic else value:.3g}", fill="#dddddd")
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        draw.text((left, 4 + 14 * i), name, fill=colour)
        across, up = (right - left) / max(len(curve) - 1, 1), (bottom - top) / ((high - low) or 1.0)
        points = [(left + across * j, bottom - up * (scale(v) - low)) for j, v in enumerate(curve) if math.isfinite(v)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for x, y in points if len(points) < 30 else ():
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
    return picture


def as_image(picture: Any) -> Any:
    """IMAGE [1, H, W, 3] from a PIL image."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(picture, np.float32) / 255.0)[None]

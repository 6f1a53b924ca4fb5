"""A comparison as a labelled picture, as a table and as CSV."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

LABEL, MARGIN, LINE, HEAD = 220, 10, 19, 34  # pixels: width of row labels, space around pictures, a line of text, the top line
CURVE = 44  # height of the curve under a picture
SIDE = (192, 512)  # pictures are enlarged or reduced to this range
GROUND, TEXT, FAINT, BEST, LINES = "#1c1c1c", "#f0f0f0", "#b8b8b8", "#7fd18b", "#505050"


class Cell(NamedTuple):
    """One run.

    Attributes:
        label, steps: its row and column.
        evaluations: of the model; None where they were not counted.
        seconds: per step; None for the reference.
        difference: to the reference, relative; None without one.
        by_evaluation: the same of the x_0 prediction of each evaluation; empty without a reference.
        picture: uint8 [H, W, 3], or None.
        error: why it did not run.
    """

    label: str
    steps: int
    evaluations: int | None = None
    seconds: float | None = None
    difference: float | None = None
    picture: Any = None
    error: str = ""
    by_evaluation: Sequence[float] = ()


COLUMNS = ("sampler", "steps", "evaluations", "seconds per step", "difference", "difference by evaluation", "error")


def _fields(cell: Cell) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        cell.label, str(cell.steps), number(cell.evaluations, "d"), number(cell.seconds, ".4g"), number(cell.difference, ".4g"),
        " ".join(f"{value:.3g}" for value in cell.by_evaluation), cell.error,
    ]


def as_csv(cells: Sequence[Cell]) -> str:
    """One run a line, after a line of names."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(name.replace(" ", "_") for name in COLUMNS)
    writer.writerows(_fields(cell) for cell in cells)
    return file.getvalue()


def as_text(cells: Sequence[Cell]) -> str:
    """The same, aligned."""
    table = [list(COLUMNS), *(_fields(cell) for cell in cells)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(field.ljust(width) for field, width in zip(row, widths, strict=True)).rstrip() for row in table)


def grid_picture(cells: Sequence[Cell]) -> Any:
    """A PIL image: samplers in rows, step counts in columns; under each picture its numbers and, against a reference, a curve.

    The least difference of each column is marked.
    """
    from PIL import Image, ImageDraw

    references = [cell for cell in cells if _is_reference(cell)]
    rows = list(dict.fromkeys(cell.label for cell in cells if not _is_reference(cell)))
    columns = sorted({c.steps for c in cells if not _is_reference(c)})
    width, height = _size(cells)
    curves = CURVE if any(cell.by_evaluation for cell in cells) else 0
    across, down = width + 2 * MARGIN, height + 2 * MARGIN + 3 * LINE + curves
    above = (height + 2 * MARGIN) * len(references)
    size = (LABEL + across * max(len(columns), 1), above + HEAD + down * len(rows) + (LINE + MARGIN if curves else 0))
    picture = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(picture)
    large, small = _font(17), _font(13)
    for i, cell in enumerate(references):
        top = (height + 2 * MARGIN) * i + MARGIN
        label = "\n".join([*textwrap.wrap(cell.label, 24), f"{cell.steps} steps"])
        draw.multiline_text((MARGIN, top), label, fill=TEXT, font=large, spacing=4)
        picture.paste(_fitted(cell.picture, (width, height)), (LABEL + MARGIN, top))
    for i, count in enumerate(columns):
        draw.text((LABEL + MARGIN + across * i, above + MARGIN), f"{count} steps", fill=TEXT, font=large)
    values = [v for cell in cells for v in cell.by_evaluation if v > 0 and math.isfinite(v)]
    for i, label in enumerate(rows):
        top = above + HEAD + i * down + MARGIN
        if i:
            draw.line([(MARGIN, top - MARGIN), (size[0] - MARGIN, top - MARGIN)], fill=LINES)
        draw.multiline_text((MARGIN, top), "\n".join(textwrap.wrap(label, 24)), fill=TEXT, font=large, spacing=4)
        for cell in (c for c in cells if c.label == label):
            left = LABEL + MARGIN + across * columns.index(cell.steps)
            if cell.picture is not None:
                picture.paste(_fitted(cell.picture, (width, height)), (left, top))
            else:
                reason = "\n".join(textwrap.wrap(cell.error, max(width // 8, 12)))
                draw.multiline_text((left, top), reason, fill=FAINT, font=small)
            best = cell.difference is not None and cell.difference <= min(
                (c.difference for c in cells if c.steps == cell.steps and c.difference is not None), default=math.inf)
            for line, text in enumerate(_caption(cell, best)):
                fill = BEST if best and line == 0 else TEXT if line == 0 else FAINT
                draw.text((left, top + height + 4 + line * LINE), text, fill=fill, font=small)
            if cell.by_evaluation and values:
                box = (left, top + height + 3 * LINE + 10, left + width, top + height + 3 * LINE + CURVE - 2)
                _draw_curve(draw, cell.by_evaluation, (min(values), max(values)), box)
    if curves and values:
        words = f"curves: difference of each evaluation's prediction, {max(values):.2g} (top) to {min(values):.2g}, logarithmic"
        draw.text((MARGIN, size[1] - LINE - 4), words, fill=FAINT, font=small)
    return picture


def _is_reference(cell: Cell) -> bool:
    return cell.evaluations is None and cell.seconds is None and not cell.error


def _font(size: int) -> Any:
    """Pillow's own outline font, or its small pixel font where Pillow is old or built without FreeType."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def _caption(cell: Cell, best: bool) -> list[str]:
    difference = "" if cell.difference is None else f"difference {cell.difference:.3g}{', the least' if best else ''}"
    counted = f"{cell.steps} steps" if cell.evaluations is None else f"{cell.evaluations} evaluations"
    return [*filter(None, (difference, counted, "" if cell.seconds is None else f"{1000 * cell.seconds:.3g} ms per step"))]


def _draw_curve(draw: Any, values: Sequence[float], span: tuple[float, float], box: tuple[int, int, int, int]) -> None:
    """A polyline over the evaluations, logarithmic and on one scale for all."""
    left, top, right, bottom = box
    low, high = (math.log(v) for v in span)
    draw.line([(left, bottom), (right, bottom)], fill=LINES)
    points = [
        (left + (right - left) * (i + 0.5) / len(values), bottom - (bottom - top) * (math.log(v) - low) / ((high - low) or 1.0))
        for i, v in enumerate(values) if v > 0 and math.isfinite(v)
    ]
    if len(points) > 1:
        draw.line(points, fill=BEST, width=2)
    for x, y in points if len(points) <= 40 else ():
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=BEST)


def _size(cells: Sequence[Cell]) -> tuple[int, int]:
    """(width, height) of every picture in the grid."""
    shapes = [cell.picture.shape for cell in cells if cell.picture is not None] or [(SIDE[0], SIDE[0], 3)]
    height, width = shapes[0][:2]
    longest = max(height, width)
    scale = max(1, -(-SIDE[0] // longest)) if longest < SIDE[0] else min(1.0, SIDE[1] / longest)
    return max(round(width * scale), SIDE[0]), round(height * scale)


def _fitted(pixels: Any, size: tuple[int, int]) -> Any:
    from PIL import Image

    picture = Image.fromarray(pixels)
    return picture.resize(size, Image.Resampling.NEAREST if picture.width < size[0] else Image.Resampling.LANCZOS)

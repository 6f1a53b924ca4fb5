"""A comparison as a labelled picture, as a table and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

LABEL, MARGIN, LINE = 190, 8, 14  # pixels: width of the row labels, space around pictures, height of a line of text
SIDE = (128, 512)  # pictures are enlarged or reduced to this range
GROUND, TEXT, FAINT = "#1c1c1c", "#f0f0f0", "#b8b8b8"


class Cell(NamedTuple):
    """One run.

    Attributes:
        label, steps: its row and column.
        evaluations: of the model; None where they were not counted.
        seconds: per step; None for the reference.
        difference: to the reference, relative; None without one.
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


COLUMNS = ("sampler", "steps", "evaluations", "seconds per step", "difference", "error")


def _fields(cell: Cell) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        cell.label, str(cell.steps), number(cell.evaluations, "d"), number(cell.seconds, ".4g"), number(cell.difference, ".4g"),
        cell.error,
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
    """A PIL image: labels in rows, step counts in columns, the numbers under each picture."""
    from PIL import Image, ImageDraw

    rows = list(dict.fromkeys(cell.label for cell in cells))
    counts = {label: sorted({c.steps for c in cells if c.label == label}) for label in rows}
    columns = sorted({c.steps for c in cells if c.evaluations is not None or c.error or c.seconds is not None}) or counts[rows[0]]
    width, height = _size(cells)
    across, down = width + 2 * MARGIN, height + 2 * MARGIN + 3 * LINE
    picture = Image.new("RGB", (LABEL + across * len(columns), down * len(rows)), GROUND)
    draw = ImageDraw.Draw(picture)
    for i, label in enumerate(rows):
        top = i * down + MARGIN
        draw.multiline_text((MARGIN, top), "\n".join(textwrap.wrap(label, 28)), fill=TEXT)
        for cell in (c for c in cells if c.label == label):
            left = LABEL + MARGIN + across * (columns.index(cell.steps) if cell.steps in columns else 0)
            if cell.picture is not None:
                picture.paste(_fitted(cell.picture, (width, height)), (left, top))
            else:
                draw.multiline_text((left, top), "\n".join(textwrap.wrap(cell.error, max(width // 7, 12))), fill=FAINT)
            draw.multiline_text((left, top + height + 2), "\n".join(_caption(cell)), fill=TEXT, spacing=2)
    return picture


def _caption(cell: Cell) -> list[str]:
    first = f"{cell.steps} steps" + ("" if cell.evaluations is None else f", {cell.evaluations} evals")
    second = "" if cell.difference is None else f"difference {cell.difference:.3g}"
    return [first, second, "" if cell.seconds is None else f"{1000 * cell.seconds:.3g} ms per step"]


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

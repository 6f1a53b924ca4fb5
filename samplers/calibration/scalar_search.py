"""Minimising a function of one number from a list of what is known so far, so that a search can stop and go on anywhere.

A history is a list of (place, value, slope); each function here gives the next place to look at from it alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Look = tuple[float, float, float]  # place, value, slope (NaN where it was not asked for)
LOW, HIGH = -1.0, 4.0  # ratios beyond are extrapolation without sense
FIRST_STEP = 0.1
GOLDEN = 0.381966011250105


def adamw(history: Sequence[Look], start: float = 1.0, rate: float = 0.1, decay: float = 0.01) -> float:
    """The place after one AdamW move per look: moments 0.9 and 0.999, eps 1e-8 (the published search's optimiser)."""
    place, mean, power = start, 0.0, 0.0
    for count, (_, _, slope) in enumerate(history, 1):
        place *= 1.0 - rate * decay
        mean = mean + (slope - mean) * (1 - 0.9)
        power = 0.999 * power + (1 - 0.999) * slope * slope
        root = math.sqrt(power) / math.sqrt(1 - 0.999**count) + 1e-8
        place -= rate / (1 - 0.9**count) * mean / root
    return place


def descend(history: Sequence[Look], start: float = 1.0) -> float:
    """The next place of a search with slopes: downhill from the start in growing steps, then by cubics between the ends."""
    if not history:
        return start
    place, _, slope = history[-1]
    known = sorted(history)
    inside = next(((a, b) for a, b in itertools.pairwise(known) if a[2] < 0 < b[2]), None)
    if inside is None:
        step = FIRST_STEP if len(history) == 1 else 2 * abs(place - history[-2][0])
        return min(max(place - math.copysign(step, slope), LOW), HIGH)
    (a, fa, down), (b, fb, up) = inside
    d = down + up - 3 * (fb - fa) / (b - a)
    root = math.sqrt(d * d - down * up)  # the ends slope towards each other: a minimum lies between
    margin = 0.02 * (b - a)  # a cubic that clings to one end would leave the other where it is
    return min(max(b - (b - a) * (up + root - d) / (up - down + 2 * root), a + margin), b - margin)


def line(history: Sequence[Look], start: float = 1.0) -> float:
    """The next place of a derivative-free search: a bracket around the least value, narrowed by parabolas.

    Needs no slopes; a value that is not finite counts as very large.
    """
    if len(history) < 3:
        return start + (0.0, -FIRST_STEP, FIRST_STEP)[len(history)]
    known = sorted((place, value if math.isfinite(value) else math.inf) for place, value, _ in history)
    i = min(range(len(known)), key=lambda k: known[k][1])
    if i in (0, len(known) - 1):  # the least is at the edge: go on outwards, twice as far
        edge, inner = known[i][0], known[1 if i == 0 else -2][0]
        return 0.5 * (edge + inner) if edge in (LOW, HIGH) else min(max(edge + 2 * (edge - inner), LOW), HIGH)
    (a, fa), (b, fb), (c, fc) = known[i - 1 : i + 2]
    numerator = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    denominator = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    place = b - 0.5 * numerator / denominator if math.isfinite(denominator) and denominator != 0 else b
    near = 0.05 * min(c - b, b - a)
    lopsided = max(c - b, b - a) > 4 * min(c - b, b - a)
    if not a + near < place < c - near or abs(place - b) < near or lopsided:  # no progress there: divide the longer side
        place = b + GOLDEN * (c - b) if c - b > b - a else b - GOLDEN * (b - a)
    return place


def best(history: Sequence[Look]) -> float:
    """The place of the least value."""
    return min(history, key=lambda look: look[1] if math.isfinite(look[1]) else math.inf)[0]

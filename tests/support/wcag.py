"""Contrast of colours as WCAG 2 defines it."""

import re


def luminance(colour):
    """Of rgb(0..255), color(srgb 0..1) or #rrggbb."""
    if colour.startswith("#"):
        numbers = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    else:
        numbers = [float(x) / (255 if colour.startswith("rgb") else 1) for x in re.findall(r"[\d.]+(?:e-?\d+)?", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in numbers]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """1 (none) to 21 (black on white); text should have 4.5."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)

"""What every benchmark writes: CSV, Markdown, the machine and the versions."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "scipy", "diffusers", "k-diffusion", "torchsde", "numba", "triton")


def machine() -> dict[str, str]:
    """The machine and the versions of everything that takes part."""
    found = {"processor": _processor(), "cores": str(os.cpu_count()), "system": platform.platform(terse=True),
             "python": platform.python_version(), "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    version = Path(os.environ.get("COMFYUI_PATH", "")) / "comfyui_version.py"
    if os.environ.get("COMFYUI_PATH") and version.exists():
        found["ComfyUI"] = version.read_text().split('"')[1]
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row, the first row's keys as the header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """What ``write_csv`` wrote; what looks like a number is one."""
    with path.open(newline="") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers to three digits."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(number(cell) for cell in row) + " |" for row in rows)]) + "\n"


def number(value: Any) -> str:
    """A cell: floats to three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def preamble(command: str, text: str) -> str:
    """The head of a result file: how it was made, and on what."""
    facts = ", ".join(f"{k} {v}" for k, v in machine().items())
    return f"{text}\n\nMade by `{' '.join([command, *sys.argv[1:]])}`.\nMachine: {facts}.\n\n"

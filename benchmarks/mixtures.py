"""Every calibrated solver and corrector on the analytic mixtures.

    python -m fewstep.benchmarks.mixtures [--out DIR] [method ...]

Writes mixtures.md: what each method's own benchmark prints, and the time it took. ``docs/results.md`` says what to make of it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from . import compensation, dpm_solver_v3, fitted, teleportation, time_shift
from .mixture_cells import report
from .tables import preamble

HEAD = (
    "The analytic mixtures: mean-square errors to the exact end. For each method first the geometric means, of plain errors and "
    "of the shares of the best plain one (in brackets how many cells are worse), then every cell."
)
METHODS = {
    "compensation and DualFast": compensation, "teleportation": teleportation, "DPM-Solver-v3": dpm_solver_v3,
    "fitted plans": fitted, "time shift": time_shift,
}


def main() -> None:
    """Measures and writes the chosen methods, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="method", help=", ".join(METHODS))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    if unknown := set(args.methods) - set(METHODS):
        parser.error(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    text = preamble("python -m fewstep.benchmarks.mixtures", HEAD)
    for name in args.methods or METHODS:
        begin = time.monotonic()
        tables = report(METHODS[name].cells(), METHODS[name].BY)
        text += f"## {name[0].upper()}{name[1:]}\n\n{tables}\n{time.monotonic() - begin:.0f} s.\n\n"
        (args.out / "mixtures.md").write_text(text.rstrip() + "\n")  # what there is, if it is stopped
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()

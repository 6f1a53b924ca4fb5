"""Error per evaluation on the trained digit models: every named solver on its best grid, and the shipped calibrations.

    python -m fewstep.benchmarks.digits [--out docs/results] [--samples 20]

Each cell is the mean-square difference of the end states to a 1000-step solution from the same noise, for noise that no
calibration has seen, one prompt per digit. Plain solvers take the best of three grids; a calibration stands where one was
made for that model, guidance and number of evaluations.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..demo import FORMS
from ..demo.model import load
from ..demo.text import context_of
from ..samplers import Recipe, frames, grids, run
from ..samplers.calibration import store
from ..samplers.errors import FewStepError
from ..samplers.solvers.fitted import fitted_grid
from .tables import markdown

GUIDANCES = (1.0, 2.0, 4.0, 7.5)
NFES = (5, 6, 8, 10, 20)
GRIDS = ("uniform_t", "uniform_lambda", "karras")
PLAIN = {
    "DPM-Solver++ 2M": Recipe("dpm_solver_multistep", {"order": 2}),
    "DPM-Solver++ 3M": Recipe("dpm_solver_multistep", {"order": 3}),
    "UniPC-2": Recipe("unipc", {"order": 2}), "UniPC-3": Recipe("unipc", {"order": 3}),
    "DEIS tAB3": Recipe("deis_ab", {"ab_order": 3, "basis": "t"}),
}
SEED = 90_000  # far from the seeds that calibrations use
CALIBRATIONS = Path(__file__).resolve().parents[1] / "demo" / "calibration"


def cells(samples: int) -> Iterator[dict[str, Any]]:
    """One row for each form, guidance, number of evaluations and method; ``grid`` is the best of a plain solver's."""
    store.add_folder(CALIBRATIONS)
    classes = torch.arange(samples) % 10
    for form, guidance in itertools.product(FORMS, GUIDANCES):
        model = load(form)
        frame = frames.flow() if model.alphas_cumprod is None else frames.discrete_vp(model.alphas_cumprod).unit_alpha()
        denoiser = model.denoiser(context_of(classes), guidance_scale=guidance)
        noise = torch.randn(samples, 4, 8, 8, generator=torch.Generator().manual_seed(SEED))
        fine = grids.uniform_t(frame, 1000, end="zero")
        start = noise * (fine.node(0).alpha ** 2 + fine.node(0).sigma ** 2) ** 0.5
        exact = run(Recipe("dpm_solver_multistep", {"order": 2}).resolve(frame, fine), denoiser, start)

        def error(recipe: Recipe, grid: grids.Grid, denoiser: Any = denoiser, start: Any = start, exact: Any = exact) -> float:
            plan = recipe.resolve(grid.frame, grid)
            return float((run(plan, denoiser, start).double() - exact.double()).square().mean())

        for nfe in NFES:
            made = {kind: grids.GRIDS[kind](frame, nfe, end="zero") for kind in GRIDS}
            for name, recipe in PLAIN.items():
                found = {kind: error(recipe, grid) for kind, grid in made.items()}
                best = min(found, key=lambda kind: found[kind])
                yield {"form": form, "guidance": guidance, "nfe": nfe, "method": name, "grid": best, "mse": found[best]}
            for name, recipe, grid in calibrated(form, guidance, nfe, frame, made["uniform_t"]):
                key = {"form": form, "guidance": guidance, "nfe": nfe, "method": name, "grid": "own"}
                try:
                    yield {**key, "mse": error(recipe, grid)}
                except FewStepError as reason:
                    print(f"{form} guidance {guidance:g} {nfe} evaluations, {name}: {reason}")


def calibrated(form: str, guidance: float, nfe: int, frame: frames.Frame, grid: grids.Grid) -> Iterator[tuple[str, Recipe, Any]]:
    """(name, recipe, grid) of the shipped calibrations for this cell."""
    for file in store.list_files():
        found = store.read(store.find(file))
        if f"-{form}-" not in file or found.meta.get("guidance") != guidance:
            continue
        if found.purpose == "plan" and found.meta["steps"] == nfe:
            yield "fitted plan", Recipe("fitted_plan", {"calibration": file}), fitted_grid(found, frame)
        if found.purpose == "ratios" and found.meta["steps"] == nfe:
            yield "UniPC-2 + compensation", Recipe("unipc", {"order": 2}).corrected("dynamic_compensation", ratios=file), grid
        if found.purpose == "moments":
            options = {"moments": file, "mode": "mean", "rest": "regrid"}
            yield "UniPC-2 + teleport", Recipe("unipc", {"order": 2}).started("teleport", **options), grid
        if found.purpose == "statistics":
            yield "DPM-Solver-v3", Recipe("dpm_solver_v3", {"statistics": file}), grid


def table(rows: list[dict[str, Any]]) -> str:
    """Per model and guidance: the best plain solver at each number of evaluations, and each calibration's share of its error."""
    heads = ("model", "guidance", "evaluations", "best plain solver", "its error", "calibrated: error (share of the best plain)",
             "plain solvers need")
    lines = []
    for form, guidance in itertools.product(FORMS, GUIDANCES):
        own = [r for r in rows if r["form"] == form and r["guidance"] == guidance]
        plain = {nfe: min((r for r in own if r["nfe"] == nfe and r["method"] in PLAIN), key=lambda r: r["mse"]) for nfe in NFES}
        for nfe in NFES:
            best, others = plain[nfe], [r for r in own if r["nfe"] == nfe and r["method"] not in PLAIN]
            words = "; ".join(f"{r['method']} {r['mse']:.2e} ({r['mse'] / best['mse']:.2f})" for r in others)
            least = min((r["mse"] for r in others), default=None)
            reach = "" if least is None else next((str(n) for n in NFES if plain[n]["mse"] <= least), f"more than {NFES[-1]}")
            lines.append([
                form, f"{guidance:g}", str(nfe), f"{best['method']}, {best['grid']}", f"{best['mse']:.2e}", words, reach])
    return markdown(heads, lines)


def main() -> None:
    """Writes the CSV and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--samples", type=int, default=20)
    args = parser.parse_args()
    rows = list(cells(args.samples))
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "digits.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (args.out / "digits.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

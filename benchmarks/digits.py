"""The trained digit models: error per evaluation and Frechet distance of named solvers, diffusers' too, and of the calibrations.

    python -m fewstep.benchmarks.digits [--out docs/results] [--add] [--solutions FILE]

The error is the distance of the end states from a 1000-step solution from the same noise, which no calibration has seen, two
of each digit. The models run as in a host: float32, told the nearest trained step. Plain solvers stand on the best of uniform
t (to the least noise, and trailing), uniform lambda and Karras, diffusers' on the best of theirs. The Frechet distance is that
of the classifier's features of 360 samples to those of the held-out digits; compare it at equal guidance only, which moves it
more than any solver.

digits.csv keeps each method on its best grid. ``--add`` measures only what that file lacks: what new calibration files bring.
``--solutions`` keeps the 1000-step solutions, a fifth of the work, in a safetensors file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..demo import FORMS, classifier, data
from ..demo.measure import features, frechet
from ..demo.model import load
from ..demo.sampling import frame_of
from ..demo.text import context_of
from ..samplers import Recipe, grids, run
from ..samplers.analytic import start_noise
from . import ours, peers_diffusers, shipped
from .digits_tables import write
from .error import Row, measure
from .methods import Method
from .problems import GUIDANCES, Denoiser, Problem
from .tables import read_csv, write_csv

NFES = (5, 6, 8, 10, 20)
FRECHET_NFES = (5, 10)
PLAIN = {
    "DPM-Solver++ 2M": Recipe("dpm_solver_multistep", {"order": 2}),
    "DPM-Solver++ 3M": Recipe("dpm_solver_multistep", {"order": 3}),
    "UniPC-2": Recipe("unipc", {"order": 2}), "UniPC-3": Recipe("unipc", {"order": 3}),
    "DEIS tAB3": Recipe("deis_ab", {"ab_order": 3, "basis": "t"}),
    "DEIS log rho AB3": Recipe("deis_ab", {"ab_order": 3, "basis": "log_rho"}),
}
DIFFUSERS = ("DPMSolverMultistep(", "UniPCMultistep(", "DEISMultistep(solver_order=3)")
UNUSUAL = ("algorithm_type=dpmsolver,", "algorithm_type=sde", "solver_type=heun", "solver_type=bh1", "euler_at_final")
DIFFUSERS_GRIDS = ("trailing", "karras", "exponential", "shift 1")
SEED = 90_000  # far from the seeds that calibrations use
FINE = 1000  # steps of the solution


def problem(form: str, classes: torch.Tensor, seed: int) -> Problem:
    """A demo model as hosts run it, with the ``classes`` [N] as prompts."""
    demo = load(form)

    def make(guidance: float) -> Denoiser:
        inner = demo.denoiser(context_of(classes), guidance_scale=guidance)

        @torch.no_grad()
        def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return inner(x.float(), sigma).double()

        return denoiser

    return Problem(f"digits_{form}", form, frame_of(demo), make, start_noise(seed, (len(classes), 4, 8, 8)))


def plain_methods() -> list[Method]:
    """The named solvers, the pack's and diffusers'."""
    found = [Method("fewstep", name, lambda _: shipped.FREE, partial(ours.sample, recipe)) for name, recipe in PLAIN.items()]
    for method in peers_diffusers.methods():
        if method.name.startswith(DIFFUSERS) and not any(word in method.name for word in UNUSUAL):
            found.append(replace(method, grids=partial(_usual_grids, method)))
    return found


def every_method(given: Problem, guidance: float) -> list[Method]:
    """The same and the calibrations for one model and guidance."""
    return [*plain_methods(), *shipped.methods(given, guidance)]


def _usual_grids(method: Method, given: Problem) -> list[str]:
    return [grid for grid in method.grids(given) if grid in DIFFUSERS_GRIDS]


def solve(given: Problem, guidance: float) -> torch.Tensor:
    """x_0 in 1000 steps of DPM-Solver++ 2M."""
    grid = grids.uniform_t(given.frame, FINE, end="zero")
    plan = PLAIN["DPM-Solver++ 2M"].resolve(given.frame, grid)
    return run(plan, given.make(guidance), given.noise * grid.node(0).sigma)


def missing(methods: Iterable[Method], given: Problem, rows: Iterable[Row]) -> list[Method]:
    """Methods that have grids for this model, and of which no row on one of them is known."""
    known = {(row["package"], row["method"], row["grid"]) for row in rows}
    offered = ((method, method.grids(given)) for method in methods)
    return [m for m, own in offered if own and not any((m.package, m.name, grid) in known for grid in own)]


def best_of_each(rows: Iterable[Row]) -> list[Row]:
    """Each method on its best grid, by evaluations that it really took."""
    found: dict[Any, Row] = {}
    for row in rows:
        key = row["package"], row["method"], row["nfe"]
        if row["evaluations"] == row["nfe"] and (key not in found or row["error"] < found[key]["error"]):
            found[key] = row
    return list(found.values())


def cell(given: Problem, guidance: float, rows: list[Row]) -> list[Row]:
    """All rows of one model and guidance; of ``rows``, the known ones, those of calibrations that are gone are dropped."""
    methods = every_method(given, guidance)
    current = {grid for method in methods for grid in method.grids(given)}
    rows = [row for row in rows if row["package"] != shipped.PACKAGE or row["grid"] in current]
    new = missing(methods, given, rows)
    if new:
        if guidance not in given.solutions:
            given.solutions[guidance] = solve(given, guidance)
        rows = best_of_each([*rows, *measure(given, guidance, new, NFES)])
    return [{"frechet": "", "recognised": "", **row} for row in rows]


class Quality:
    """Frechet distances and recognised shares of 360 samples, as many of each digit as were held out."""

    def __init__(self) -> None:
        _, held = data.load()
        self.classes, self.features = held.labels, features(held.latents())

    def of(self, result: torch.Tensor) -> dict[str, float]:
        """``result`` [360, 4, 8, 8] for the classes in order."""
        latents = result.float()
        right = (classifier.load().predict(latents) == self.classes).float().mean().item()
        return {"frechet": frechet(self.features, features(latents)), "recognised": right}

    def add(self, rows: list[Row], given: Problem, guidance: float) -> None:
        """Measures the best plain solver and every calibration where that is not known."""
        methods = {(m.package, m.name, grid): m for m in every_method(given, guidance) for grid in m.grids(given)}
        denoiser = given.make(guidance)
        for row in chosen(rows):
            if row["frechet"] == "":
                method = methods[row["package"], row["method"], row["grid"]]
                row |= self.of(method.sample(given, denoiser, row["grid"], row["steps"]))


def chosen(rows: list[Row]) -> Iterator[Row]:
    """The rows that get a Frechet distance."""
    for nfe in FRECHET_NFES:
        own = [row for row in rows if row["nfe"] == nfe]
        yield from (row for row in own if row["package"] == shipped.PACKAGE)
        yield min((row for row in own if row["package"] != shipped.PACKAGE), key=lambda row: row["error"])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--guidance", nargs="+", type=float, default=list(GUIDANCES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--solutions", type=Path, help="a safetensors file of the 1000-step solutions, read and written")
    parser.add_argument("--add", action="store_true", help="keep what digits.csv in that folder holds, and measure what it lacks")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "digits.csv"
    rows: list[Row] = read_csv(path) if args.add and path.exists() else []
    quality = Quality()
    kept = load_file(args.solutions) if args.solutions and args.solutions.exists() else {}
    for form in args.forms:
        given = problem(form, torch.arange(args.samples) % 10, SEED)
        many = problem(form, quality.classes, SEED + 1)
        for guidance in args.guidance:
            begin, key = time.monotonic(), f"{form} {guidance:g} {args.samples}"
            if key in kept:
                given.solutions[guidance] = kept[key]
            mine = [row for row in rows if (row["problem"], row["guidance"]) == (given.name, guidance)]
            done = cell(given, guidance, mine)
            quality.add(done, many, guidance)
            rows = [row for row in rows if row not in mine] + done
            write_csv(path, rows)
            if args.solutions and guidance in given.solutions:
                save_file(kept := {**kept, key: given.solutions[guidance]}, args.solutions)
            print(f"{given.name} guidance {guidance:g}: {len(done)} rows, {time.monotonic() - begin:.0f} s", flush=True)
    write(args.out, rows)


if __name__ == "__main__":
    main()

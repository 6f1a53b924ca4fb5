"""What the fitted plan's default settings reach on the digit models: ``python -m fewstep.benchmarks.plan_defaults``.

For each model, guidance and schedule the mean-square error of a plan of five steps fitted with each of the ``SETTINGS``, relative
to DPM-Solver++ 2M on the same steps, on 40 noises that no fit has seen; and the evaluations that each takes picture by picture.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ..demo import FORMS
from ..demo.model import load
from ..demo.text import context_of
from ..samplers.calibration.fitted_plan import FitSettings, cost, fit
from ..samplers.calibration.job import Job, Keeper
from ..samplers.calibration.joint import Joint
from ..samplers.calibration.refine import final_errors
from ..samplers.calibration.samples import Samples
from ..samplers.calibration.search_ratios import draw_starts
from ..samplers.calibration.stagewise import teacher_states
from ..samplers.calibration.tableau import Tableau
from ..samplers.grids import from_sigmas
from ..samplers.solvers.dpm_multistep import dpm_solver_multistep
from .problems import GUIDANCES, PROBLEMS
from .tables import markdown

STEPS, BATCH, TEST = 5, 8, 40
SCHEDULES = {"eps": ("trailing", "uniform_t"), "v": ("trailing", "uniform_t"), "flow": ("trailing", "uniform_t", "beta")}


class Settings(NamedTuple):
    """Of the calibrating node."""

    samples: int
    rounds: int
    reference_steps: int

    @property
    def fit(self) -> FitSettings:
        """As the library takes them."""
        return FitSettings(teacher_steps=self.reference_steps, joint=Joint(rounds=self.rounds))


SETTINGS = (Settings(32, 2, 30), Settings(24, 2, 30), Settings(64, 4, 50))  # the node's defaults, less, more


def shares(form: str, guidance: float, schedule: str) -> Iterator[float]:
    """For each of the ``SETTINGS`` the fitted plan's error over the plain solver's."""
    problem, model, like = PROBLEMS[f"digits_{form}"](1), load(form), torch.zeros(4, 8, 8)

    def denoiser(count: int) -> Any:
        return model.denoiser(context_of(torch.arange(count) % 10), guidance_scale=guidance)

    grid = from_sigmas(problem.frame, problem.sigmas(schedule, STEPS))
    plain = Tableau.from_plan(dpm_solver_multistep(grid, order=2), problem.frame)
    x, test = draw_starts(grid, like, 999, TEST), Samples(denoiser(TEST), TEST, TEST)
    target = teacher_states(test, plain.grid, x, 200, Keeper(Job(10**9, {})))[-1]
    before = float(final_errors(plain, test, x, target).mean())
    for settings in SETTINGS:
        held_out = max(1, settings.samples // BATCH // 4) * BATCH
        starts = draw_starts(grid, like, 0, settings.samples)
        found = fit(denoiser(BATCH), grid, starts, batch=BATCH, held_out=held_out, settings=settings.fit)
        yield float(final_errors(Tableau.from_calibration(found, problem.frame), test, x, target).mean()) / before


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    found = {
        (form, guidance, schedule): list(shares(form, guidance, schedule))
        for form in FORMS for guidance, schedule in itertools.product(GUIDANCES, SCHEDULES[form])
    }
    grid = from_sigmas(PROBLEMS["digits_eps"](1).frame, PROBLEMS["digits_eps"](1).sigmas("uniform_t", STEPS))
    lines: list[list[Any]] = [[*map(str, cell), *values] for cell, values in found.items()]
    columns = list(zip(*found.values(), strict=True))
    lines.append(["geometric mean", "", "", *(math.exp(statistics.fmean(map(math.log, column))) for column in columns)])
    lines.append(["worst", "", "", *map(max, columns)])
    lines.append(["evaluations", "", "", *(cost(grid, s.samples, 1, s.samples // 4, s.fit) for s in SETTINGS)])
    names = [f"{s.samples} samples, {s.rounds} rounds, {s.reference_steps} reference steps" for s in SETTINGS]
    print(markdown(["model", "guidance", "schedule", *names], lines))


if __name__ == "__main__":
    main()

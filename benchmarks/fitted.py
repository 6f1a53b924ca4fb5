"""Fitted plans on the analytic mixtures: mean-square error to the exact end, against their base with the same evaluations.

    python -m fewstep.benchmarks.fitted

Each plan is fitted to other noise than the comparison's, with the guidance that is sampled with, from DPM-Solver++ 2M on the
same grid. Where the fit finds no gain on its held-out noise it refuses, and the base stands in the row.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..samplers import Recipe, run
from ..samplers.analytic import GaussianMixture, start_noise
from ..samplers.calibration.fitted_plan import FitSettings, fit
from ..samplers.calibration.joint import Joint
from ..samplers.errors import CalibrationError
from .mixture_cells import (
    BASES,
    GRIDS,
    GUIDANCES,
    MIXTURES,
    NFES,
    Cell,
    errors_of,
    exact_end,
    grid_of,
    mse,
    place,
    report,
    starts,
)

TEACHER = 150  # steps; some plans of 10 steps come within 1e-6 of the solution
FITS = {
    "stagewise": FitSettings(teacher_steps=TEACHER, joint=Joint(rounds=0)), "joint": FitSettings(teacher_steps=TEACHER),
}
SAMPLES, HELD_OUT, BATCH = 64, 16, 16
BY = ("guidance", "NFE")


def cells() -> Iterator[Cell]:
    """One for each mixture, grid, guidance and number of evaluations."""
    for mixture in MIXTURES:
        model = GaussianMixture.make(mixture)
        for name in GRIDS:
            frame, start = GRIDS[name][0], starts(name)
            own = start_noise(700, (SAMPLES, 4, 8, 8)) * grid_of(name, 1).sigma[0]
            for guidance in GUIDANCES:
                denoiser = model.denoiser(frame, guidance)
                exact = exact_end(name, denoiser, start)
                for nfe in NFES:
                    grid = grid_of(name, nfe)
                    plain = errors_of(BASES, grid, denoiser, start, exact)
                    errors = {}
                    for kind, settings in FITS.items():
                        try:
                            made = fit(denoiser, grid, own, batch=BATCH, held_out=HELD_OUT, settings=settings)
                        except CalibrationError:  # refused: the base that it starts from stays
                            errors[kind] = plain["DPM-Solver++ 2M"]
                            continue
                        plan = Recipe("fitted_plan", {"calibration": made}).resolve(frame, made.meta["sigmas"])
                        errors[kind] = mse(run(plan, denoiser, start), exact)
                    yield Cell(place(name, guidance, nfe, mixture=str(mixture)), plain, errors)


if __name__ == "__main__":
    print(report(cells(), BY))

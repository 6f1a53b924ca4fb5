"""Make the calibrations that ship with the demo models: ``python -m fewstep.demo.calibrate [part of a name ...]``.

They are made as a user makes them, by the calibrating nodes, and written to ``demo/calibration``. What brings nothing on unseen
noise is not kept. The fitted plans take a minute each on one core: of two starts the one with less error on unseen noise is kept.
"""

import argparse
import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..samplers.calibration import store
from . import FORMS

FOLDER = Path(__file__).parent / "calibration"
STEPS = 5
GUIDANCES = (1.0, 2.0, 4.0, 7.5)
PLAN = {"samples": 200, "rounds": 20, "reference_steps": 50}
STARTS = ("beta", "trailing")  # where a fit starts


class Made(NamedTuple):
    """One calibration of one form."""

    name: str
    node: str
    form: str
    cfg: float
    schedules: tuple[str, ...]
    options: dict[str, Any]


def wanted() -> Iterator[Made]:
    """All that ships, at the guidance of the templates; fitted plans at four scales."""
    for form in FORMS:
        for method, node, cfg, schedule in (
            ("moments", "FewStepCalibrateMoments", 2.0, "uniform_t"), ("ratios", "FewStepCalibrateRatios", 4.0, "uniform_t"),
            ("statistics", "FewStepCalibrateStatistics", 1.0, "uniform_lambda"),  # on uniform t they bring nothing
        ):
            yield Made(f"digits-{form}-{method}-cfg{cfg:g}", node, form, cfg, (schedule,), {})
    for form, cfg in itertools.product(FORMS, GUIDANCES):
        yield Made(f"digits-{form}-plan-cfg{cfg:g}", "FewStepCalibratePlan", form, cfg, STARTS, PLAN)


def main() -> None:
    """Every calibration whose name has one of the given parts in it; all of them without any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="parts of names, such as plan-cfg4")
    parts = parser.parse_args().parts
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for made in wanted():
            if not parts or any(part in made.name for part in parts):
                make(made, Path(folder))


def make(made: Made, folder: Path) -> None:
    """Makes one from each start in ``folder`` and keeps the best where it gains."""
    best = math.inf
    for schedule in made.schedules:
        verdict = calibrate(made, schedule, folder)
        print(verdict, schedule, made.name, flush=True)
        file = folder / "fewstep" / f"{made.name}.safetensors"
        if "NO GAIN" in verdict or not file.exists():
            continue
        error = store.read(file).meta["gain"]["calibrated"]  # on unseen noise; with its median where it is a plan's
        mean = error["mean"] if isinstance(error, dict) else error
        if mean < best:
            best = mean
            shutil.copy(file, FOLDER)
        file.unlink()


def calibrate(made: Made, schedule: str, folder: Path) -> str:
    """Runs the node; the sentence of its report that says what was gained, or the error."""
    from ..host.calibrate_command import DIGITS, calibration_workflow
    from ..host.embedded import EmbeddedHost
    from ..host.errors import NodeExecutionError
    from ..host.executor import Executor

    graph = calibration_workflow(
        made.node, form=made.form, prompts=DIGITS.split(","), cfg=made.cfg, steps=STEPS, schedule=schedule, solver="unipc",
        batch=10, seed=0, options={**made.options, "name": made.name},
    )
    try:
        result = Executor(EmbeddedHost(folder, models_directory=folder)).execute(graph, {})
    except NodeExecutionError as error:
        return str(error)
    verdict: str = result.values["7"][1][0].splitlines()[2]
    return verdict


if __name__ == "__main__":
    main()

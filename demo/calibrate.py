"""Make the calibrations that ship with the demo models: ``python -m fewstep.demo.calibrate`` writes ``demo/calibration``.

They are made as a user makes them, by the calibrating nodes, at the guidance and steps of the templates. What brings nothing
on unseen noise is not kept.
"""

import shutil
import tempfile
from pathlib import Path

from . import FORMS

FOLDER = Path(__file__).parent / "calibration"
STEPS = 5
JOBS = {  # method -> (node, guidance, settings)
    "moments": ("FewStepCalibrateMoments", 2.0, {}),
    "ratios": ("FewStepCalibrateRatios", 4.0, {}),
    "plan": ("FewStepCalibratePlan", 2.0, {"iterations": 300, "samples": 160}),
    "statistics": ("FewStepCalibrateStatistics", 2.0, {}),
}


def main() -> None:
    """Every method for every form."""
    from ..host.calibrate_command import DIGITS, calibration_workflow
    from ..host.embedded import EmbeddedHost
    from ..host.errors import NodeExecutionError
    from ..host.executor import Executor

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        host = EmbeddedHost(folder, models_directory=folder)
        for method, (node, cfg, options) in JOBS.items():
            for form in FORMS:
                name = f"digits-{form}-{method}-cfg{cfg:g}"
                graph = calibration_workflow(
                    node, form=form, prompts=DIGITS.split(","), cfg=cfg, steps=STEPS, schedule="uniform_t", solver="unipc",
                    batch=10, seed=0, options={**options, "name": name},
                )
                try:
                    result = Executor(host).execute(graph, {})
                except NodeExecutionError as error:
                    print(f"{name}: {error}", flush=True)
                    continue
                verdict = result.values["7"][1][0].splitlines()[2]
                print(verdict, name, flush=True)
                if "NO GAIN" in verdict:
                    continue
                shutil.copy(Path(folder) / "fewstep" / f"{name}.safetensors", FOLDER)


if __name__ == "__main__":
    main()

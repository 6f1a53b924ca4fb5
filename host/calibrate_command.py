"""``fewstep calibrate``: the calibrations of the graph, for the demo models, without a graph."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Method(str, Enum):
    """What can be calibrated."""

    statistics = "statistics"
    ratios = "ratios"
    moments = "moments"
    plan = "plan"


NODES = {
    Method.statistics: "FewStepCalibrateStatistics", Method.ratios: "FewStepCalibrateRatios",
    Method.moments: "FewStepCalibrateMoments", Method.plan: "FewStepCalibratePlan",
}
DIGITS = ",".join("0123456789")


def calibrate(
    method: Annotated[Method, typer.Argument(help="statistics (DPM-Solver-v3), ratios (dynamic compensation), moments "
                                                  "(teleportation) or plan (fitted solver).")],
    form: Annotated[str, typer.Option("--form", help="Which demo model: eps, v or flow.")] = "eps",
    prompts: Annotated[str, typer.Option("--prompts", help="Digits to calibrate with, separated by commas.")] = DIGITS,
    cfg: Annotated[float, typer.Option("--cfg", min=0, max=100, help="Guidance scale to calibrate for.")] = 2.0,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Steps, for ratios, plan, judging statistics.")] = 5,
    schedule: Annotated[str, typer.Option("--schedule", help="Schedule, for the same.")] = "uniform_t",
    solver: Annotated[str, typer.Option("--solver", help="The solver to compensate, or to fit from.")] = "unipc",
    option: Annotated[list[str] | None, typer.Option("--option", help="A setting of the calibrating node as name=value, such as "
                                                                      "iterations=300; may be repeated.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Samples per call of the model.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**64 - 1, help="Decides the noise to measure on.")] = 0,
    name: Annotated[str, typer.Option("--name", help="Name of the file; made from the settings if left out.")] = "",
    models: Annotated[Path, typer.Option("--models", help="Folder whose subfolder 'fewstep' takes the file.")] = Path("models"),
    count_only: Annotated[bool, typer.Option("--count-only", help="Only say how many evaluations it would take.")] = False,
) -> None:
    """Calibrate a method to a demo model and write the file, as the Calibrate nodes do for any model in a graph.

    An interrupted calibration goes on where it stopped when the same command is given again, and ends with the same file.
    For example: fewstep calibrate plan --steps 5 --cfg 2 --option iterations=300

    Exit codes: 0 done, 1 an error while running, 2 bad input, 130 interrupted.
    """
    from .cli import exit_codes, host_with_bar

    with exit_codes():
        from .executor import Executor
        from .planning import parse_options
        from .validate import refuse

        prompt = calibration_workflow(
            NODES[method], form=form, prompts=prompts.split(","), cfg=cfg, steps=steps, schedule=schedule, solver=solver,
            batch=batch, seed=seed, options={**parse_options(option or []), "name": name, "count_only": count_only},
        )
        with host_with_bar(Path("out"), None, "calibrating") as host:
            host.models_directory = models
            executor = Executor(host)
            refuse(executor.check(prompt).node_errors)
            result = executor.execute(prompt, {})
        print("\n".join(text for ui in result.ui.values() for text in ui.get("text", ())))


def calibration_workflow(
    node_id: str, *, form: str, prompts: list[str], cfg: float, steps: int, schedule: str, solver: str, batch: int, seed: int,
    options: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """A workflow around one calibrating node; sockets that the node lacks are left out with their nodes.

    Raises OptionError for an option that the node does not have.
    """
    from ..nodes import NODE_CLASS_MAPPINGS
    from ..samplers.errors import OptionError, suggest
    from .templates import node
    from .workflows import solver_entry

    types = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    known = {**types["required"], **types["optional"]}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise OptionError(f"{node_id} has no setting {unknown[0]!r}, it has {', '.join(known)}{suggest(unknown[0], known)}")
    graph = {
        "1": node("FewStepDemoCheckpoint", form=form),
        "2": node("FewStepPromptList", clip=["1", 1], prompts="\n".join(prompts)),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=batch),
    }
    sockets: dict[str, Any] = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    if "sigmas" in known:
        graph["5"] = node("FewStepSchedule", model=["1", 0], kind=schedule, steps=steps)
        sockets["sigmas"] = ["5", 0]
    if "sampler" in known:
        graph["6"] = solver_entry(solver, {})
        sockets["sampler"] = ["6", 0]
    graph["7"] = node(node_id, **sockets, cfg=cfg, seed=seed, **options)
    return graph


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(calibrate)

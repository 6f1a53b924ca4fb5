"""What calibrating costs: ``python -m fewstep.benchmarks.calibration_cost [--out DIR]`` writes calibration_cost.csv and .md.

Every calibrating node at its defaults, in the embedded host on a demo model: evaluations, seconds of processor time, and the
share of them that the model itself takes. The number of evaluations does not depend on the size of model and picture, so the
same node is asked for it with batches of one picture, as on a large model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..demo.model import load
from ..demo.text import context_of
from ..host.calibrate_command import DIGITS, calibration_workflow
from ..host.embedded import EmbeddedHost
from ..host.executor import Executor
from .tables import markdown, preamble, write_csv

NODES = ("FewStepCalibrateMoments", "FewStepCalibrateRatios", "FewStepCalibratePlan", "FewStepCalibrateStatistics")
CFG, STEPS, BATCH = 4.0, 5, 10
EXPLAINED = f"""Each calibrating node at its defaults, {STEPS} steps of UniPC, guidance {CFG:g}. An evaluation is of one sample
with guidance, so two of the network. `large` is the count for a large model worked on picture by picture: multiply it by the
time of one guided evaluation. `share of the model` is what the network takes of the seconds."""


def evaluations(host: EmbeddedHost, node: str, form: str, batch: int) -> int:
    """What the node says beforehand."""
    return int(report(host, workflow(node, form, batch, {"count_only": True})).split()[0])


def workflow(node: str, form: str, batch: int, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The calibration of the command line."""
    return calibration_workflow(
        node, form=form, prompts=DIGITS.split(","), cfg=CFG, steps=STEPS, schedule="uniform_t", solver="unipc", batch=batch,
        seed=0, options=options,
    )


def report(host: EmbeddedHost, graph: dict[str, dict[str, Any]]) -> str:
    """The calibrating node's text."""
    text: str = Executor(host).execute(graph, {}).values["7"][1][0]
    return text


def seconds_of_one(form: str, rounds: int = 20) -> float:
    """Processor time of one sample's guided evaluation in a batch."""
    denoiser = load(form).denoiser(context_of(torch.arange(BATCH) % 10), guidance_scale=CFG)
    x, sigma = torch.randn(BATCH, 4, 8, 8), torch.full((BATCH,), 0.5)
    denoiser(x, sigma)
    begin = time.process_time()
    for _ in range(rounds):
        denoiser(x, sigma)
    return (time.process_time() - begin) / rounds / BATCH


def measure(form: str, nodes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each node."""
    one = seconds_of_one(form)
    for node in nodes:
        with tempfile.TemporaryDirectory() as folder:
            host = EmbeddedHost(folder, models_directory=folder)
            large = evaluations(host, node, form, 1)
            begin = time.process_time()
            text = report(host, workflow(node, form, BATCH, {}))
            seconds = time.process_time() - begin
            count = evaluations(host, node, form, BATCH)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        yield {"node": node, "model": f"digits {form}", "evaluations": count, "seconds": seconds,
               "share of the model": min(1.0, count * one / seconds), "file bytes": size, "large": large,
               "gain": next((line for line in text.splitlines() if "unseen noise" in line), "")}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--form", default="eps", choices=("eps", "v", "flow"))
    parser.add_argument("--nodes", nargs="+", choices=NODES, default=NODES)
    args = parser.parse_args()
    torch.set_num_threads(1)  # processor time then is the time on a quiet machine
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in measure(args.form, args.nodes):
        print(*row.values(), flush=True)
        rows.append(row)
    write_csv(args.out / "calibration_cost.csv", rows)
    shown = ("node", "evaluations", "seconds", "share of the model", "file bytes", "large")
    table = markdown(shown, [[row[key] for key in shown] for row in rows])
    text = preamble("python -m fewstep.benchmarks.calibration_cost", EXPLAINED) + table
    (args.out / "calibration_cost.md").write_text(text)


if __name__ == "__main__":
    main()

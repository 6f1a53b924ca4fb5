"""Measure the shipped LoRAs: ``python -m fewstep.demo.measure_distilled`` writes demo/distilled.json and demo/distilled.md.

Each LoRA at its own 4 steps without guidance stands against its base model with the guidance that was trained in, by
several solvers and numbers of steps. With guidance every step evaluates the network twice.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from ..samplers import Plan, grids, make_plan
from . import data
from .distilled import load_distilled, names
from .measure import features, quality
from .model import DemoModel, load
from .sampling import draw, frame_of

COPIES = 3  # times the 360 held-out labels
STEPS = (4, 8, 15)
MANY = 50
# words, solver, options, grid
SAMPLERS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("DDIM (Euler)", "ddim", {}, "uniform_t"), ("DPM-Solver++ 2M", "dpm_solver_multistep", {"order": 2}, "uniform_t"),
    ("DPM-Solver++ 2M, Karras", "dpm_solver_multistep", {"order": 2}, "karras"), ("UniPC", "unipc", {"order": 3}, "uniform_t"),
    ("DEIS", "deis_ab", {}, "uniform_t"),
)
# many steps: of the ODE, and of the SDE, whose samples follow the model's scores best
REFERENCES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("DDIM (Euler)", "ddim", {}, "uniform_t"), ("DDIM, eta 1", "ddim", {"eta": 1.0}, "uniform_t"),
)


def base_plan(model: DemoModel, solver: str, options: dict[str, Any], grid: str, steps: int) -> Plan:
    """A many-step sampler of the base."""
    frame = frame_of(model)
    plan = make_plan(solver, frame, grids.GRIDS[grid](frame, steps, end="zero"), **options)
    assert isinstance(plan, Plan)
    return plan


def measure(seed: int) -> list[dict[str, Any]]:
    """One row per LoRA, and per base model, guidance, solver, grid and number of steps."""
    held = data.load()[1]
    real = (features(held.latents()), held.labels.numpy())
    classes = held.labels.repeat(COPIES)
    rows: list[dict[str, Any]] = []

    def add(facts: dict[str, Any], model: DemoModel, plan: Plan, guidance: float) -> None:
        begin = time.monotonic()
        drawn = draw(model, plan, classes, guidance=guidance, seed=seed)
        seconds = time.monotonic() - begin
        calls = plan.nfe * (1 if guidance == 1.0 else 2)
        rows.append({**facts, "steps": plan.nfe, "network_calls": calls, **quality(drawn, classes, *real), "seconds": seconds})
        print(json.dumps(rows[-1]), flush=True)

    shipped = [(name, load_distilled(name)) for name in names()]
    for form, guidance in sorted({(d.model.form, d.guidance) for _, d in shipped}):
        for name, d in shipped:
            if (d.model.form, d.guidance) == (form, guidance):
                add({"form": form, "guidance": guidance, "sampler": name}, d.model, d.plan, 1.0)
        runs = [(steps, *sampler) for steps in STEPS for sampler in SAMPLERS] + [(MANY, *sampler) for sampler in REFERENCES]
        for steps, words, solver, options, grid in runs:
            plan = base_plan(load(form), solver, options, grid, steps)
            add({"form": form, "guidance": guidance, "sampler": words}, load(form), plan, guidance)
    return rows


def table(rows: list[dict[str, Any]], seed: int) -> str:
    """As Markdown: the LoRAs, and for each number of steps the base's best sampler by distance (of many, both)."""
    lines = [
        f"{360 * COPIES} samples per row, seed {seed}.", "",
        "| form | guidance | sampler | steps | network calls | recognised | FD, 178 | FD, 360 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best: dict[Any, dict[str, Any]] = {}
    for row in rows:
        named = row["steps"] == MANY or row["sampler"] in names()
        key = (row["form"], row["guidance"], row["steps"], row["sampler"] if named else "")
        if key not in best or row["fd_whole"][0] < best[key]["fd_whole"][0]:
            best[key] = row
    for r in best.values():
        half, whole = (f"{mean:.3f} ± {spread:.3f}" for mean, spread in (r["fd_half"], r["fd_whole"]))
        lines.append(
            f"| {r['form']} | {r['guidance']:g} | {r['sampler']} | {r['steps']} | {r['network_calls']}"
            f" | {100 * r['accuracy']:.1f} % | {half} | {whole} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).parent), help="folder for distilled.json and distilled.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args.seed)
    result = {"samples": 360 * COPIES, "seed": args.seed, "rows": rows}
    (Path(args.out) / "distilled.json").write_text(json.dumps(result, indent=1) + "\n")
    (Path(args.out) / "distilled.md").write_text(table(rows, args.seed))
    print(table(rows, args.seed), flush=True)


if __name__ == "__main__":
    main()

"""Measure the shipped LoRAs: ``python -m fewstep.demo.measure_distilled`` writes demo/distilled.json and demo/distilled.md.

Each LoRA at its own 4 steps without guidance stands against its base model with the guidance that was trained in, by
several solvers and numbers of steps. With guidance every step evaluates the network twice. How much of a difference is
the noise's is measured too: 8 steps are repeated with other noise, the same for both sides.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
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
PAIRED = 8  # steps of the base that a LoRA stands for
Samplers = tuple[tuple[str, str, dict[str, Any], str], ...]  # words, solver, options, grid
SAMPLERS: Samplers = (
    ("DDIM (Euler)", "ddim", {}, "uniform_t"), ("DPM-Solver++ 2M", "dpm_solver_multistep", {"order": 2}, "uniform_t"),
    ("DPM-Solver++ 2M, Karras", "dpm_solver_multistep", {"order": 2}, "karras"), ("UniPC", "unipc", {"order": 3}, "uniform_t"),
    ("DEIS", "deis_ab", {}, "uniform_t"),
)
# many steps: of the ODE, and of the SDE, whose samples follow the model's scores best
REFERENCES: Samplers = (
    ("DDIM (Euler)", "ddim", {}, "uniform_t"), ("DDIM, eta 1", "ddim", {"eta": 1.0}, "uniform_t"),
)


def base_plan(model: DemoModel, solver: str, options: dict[str, Any], grid: str, steps: int) -> Plan:
    """A many-step sampler of the base."""
    frame = frame_of(model)
    plan = make_plan(solver, frame, grids.GRIDS[grid](frame, steps, end="zero"), **options)
    assert isinstance(plan, Plan)
    return plan


def measure(seed: int, steps: tuple[int, ...] = STEPS, references: Samplers = REFERENCES) -> list[dict[str, Any]]:
    """One row per LoRA, and per base model, guidance, solver, grid and number of steps; ``references`` take `MANY`."""
    held = data.load()[1]
    real = (features(held.latents()), held.labels.numpy())
    classes = held.labels.repeat(COPIES)
    rows: list[dict[str, Any]] = []

    def add(facts: dict[str, Any], model: DemoModel, plan: Plan, guidance: float) -> None:
        begin = time.monotonic()
        drawn = draw(model, plan, classes, guidance=guidance, seed=seed)
        seconds = time.monotonic() - begin
        calls = plan.nfe * (1 if guidance == 1.0 else 2)
        found = quality(drawn, classes, *real)
        rows.append({**facts, "seed": seed, "steps": plan.nfe, "network_calls": calls, **found, "seconds": seconds})
        print(json.dumps(rows[-1]), flush=True)

    shipped = [(name, load_distilled(name)) for name in names()]
    for form, guidance in sorted({(d.model.form, d.guidance) for _, d in shipped}):
        for name, d in shipped:
            if (d.model.form, d.guidance) == (form, guidance):
                add({"form": form, "guidance": guidance, "sampler": name}, d.model, d.plan, 1.0)
        runs = [(n, *sampler) for n in steps for sampler in SAMPLERS] + [(MANY, *sampler) for sampler in references]
        for n, words, solver, options, grid in runs:
            plan = base_plan(load(form), solver, options, grid, n)
            add({"form": form, "guidance": guidance, "sampler": words}, load(form), plan, guidance)
    return rows


def table(rows: list[dict[str, Any]], seed: int) -> str:
    """As Markdown, of one seed: the LoRAs, and for each number of steps the base's best sampler by distance (of many, both)."""
    lines = [
        f"{360 * COPIES} samples per row, seed {seed}.", "",
        "| form | guidance | sampler | steps | network calls | recognised | FD, 178 | FD, 360 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best: dict[Any, dict[str, Any]] = {}
    for row in (row for row in rows if row["seed"] == seed):
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


def paired_table(rows: list[dict[str, Any]]) -> str:
    """As Markdown: each LoRA against the base's best 8-step sampler, over all noises.

    The best one is that of the lowest mean distance. ± is the standard error of the mean of the differences at equal noise.
    """
    lines = [
        f"Means over the noises {', '.join(map(str, sorted({row['seed'] for row in rows})))}; FD, 360.", "",
        f"| LoRA | FD | recognised | the base's best, {PAIRED} steps | FD | recognised | difference of FD | of recognised |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names():
        own = [row for row in rows if row["sampler"] == name]
        same = [r for r in rows if (r["form"], r["guidance"], r["steps"]) == (own[0]["form"], own[0]["guidance"], PAIRED)]
        by_words = {words: [r for r in same if r["sampler"] == words] for words, *_ in SAMPLERS}
        best, theirs = min(by_words.items(), key=lambda item: np.mean([r["fd_whole"][0] for r in item[1]]))
        (fd, seen), (base_fd, base_seen) = _numbers(own), _numbers(theirs)
        lines.append(
            f"| {name} | {fd.mean():.3f} | {seen.mean():.2f} % | {best} | {base_fd.mean():.3f} | {base_seen.mean():.2f} %"
            f" | {_with_error(fd - base_fd, 3)} | {_with_error(seen - base_seen, 2)} |"
        )
    return "\n".join(lines) + "\n"


def _numbers(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(distances, per cent recognised), by noise."""
    rows = sorted(rows, key=lambda row: row["seed"])
    return np.array([row["fd_whole"][0] for row in rows]), np.array([100 * row["accuracy"] for row in rows])


def _with_error(differences: np.ndarray, places: int) -> str:
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return f"{differences.mean():+.{places}f} ± {error:.{places}f}"


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the noise of the whole table")
    parser.add_argument("--noises", type=int, default=5, help="how many noises, from that one on, 8 steps are compared with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).parent), help="folder for distilled.json and distilled.md")
    args = parser.parse_args()
    if args.noises < 2:
        parser.error("a difference has an error from two noises on")
    torch.set_num_threads(args.threads)
    rows = measure(args.seed)
    for seed in range(args.seed + 1, args.seed + args.noises):
        rows += measure(seed, (PAIRED,), ())
    publish(rows, args.seed, Path(args.out))


def publish(rows: list[dict[str, Any]], seed: int, folder: Path) -> None:
    """Writes distilled.json and distilled.md."""
    (folder / "distilled.json").write_text(json.dumps({"samples": 360 * COPIES, "seed": seed, "rows": rows}, indent=1) + "\n")
    text = f"{table(rows, seed)}\n{paired_table(rows)}"
    (folder / "distilled.md").write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    main()

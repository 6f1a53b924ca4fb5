"""Plans as files: JSON for the numbers, safetensors for tensor coefficients; the round trip is exact.

``save_plan`` writes one safetensors file whose metadata holds the JSON, or, for a ``.json`` name, the JSON alone (plans
without tensor coefficients). Files are written beside their final name and renamed, so none is ever half there.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .errors import FewStepError, OptionError, PlanError
from .grids import Node
from .hooks import hook_from_data, hook_to_data
from .plan import IDENTITY, Coefficient, NoiseTerm, OutputMap, Plan, Row, Stage
from .recipe import Recipe

FORMAT = 1


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes ``plan`` to ``path`` (``.safetensors`` or ``.json``). Raises PlanError if the plan cannot be saved."""
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    data = plan_to_data(plan, tensors)
    text = json.dumps(data, allow_nan=False)
    if path.suffix == ".json":
        if tensors:
            raise PlanError(f"the plan has {len(tensors)} tensor coefficients; save it as .safetensors, not {path.name}")
        content = text.encode()
    elif path.suffix == ".safetensors":
        content = save(tensors, {"fewstep_plan": text})
    else:
        raise PlanError(f"a plan is saved as .safetensors or .json, not {path.name}")
    write_atomically(path, content)


def load_plan(path: str | Path) -> Plan:
    """Reads a plan that ``save_plan`` wrote. Raises PlanError, saying what is wrong with the file, on anything else."""
    path = Path(path)
    try:
        if path.suffix == ".json":
            return plan_from_data(json.loads(path.read_text("utf-8")), {})
        if path.suffix != ".safetensors":
            raise PlanError(f"a plan is read from .safetensors or .json, not {path.name}")
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("fewstep_plan")
            if text is None:
                raise PlanError(f"{path.name} holds no FewStep plan")
            return plan_from_data(json.loads(text), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except FewStepError:
        raise
    except FileNotFoundError:
        raise PlanError(f"there is no plan file {path}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path.name} is not a readable plan: {type(error).__name__} {error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path`` and renames it into place."""
    with replaced(path) as part:
        part.write_bytes(content)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a name beside ``path`` to write to, and renames it into place where nothing failed."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def plan_to_data(plan: Plan, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The plan as JSON values; tensor coefficients go into ``tensors`` and are named in their place."""
    rows: list[Row] = []
    index: dict[int, int] = {}

    def number(row: Row) -> int:  # rows that are shared stay shared: the engine relies on it
        if id(row) not in index:
            index[id(row)] = len(rows)
            rows.append(row)
        return index[id(row)]

    def value(c: Any, where: str) -> Any:
        if not isinstance(c, torch.Tensor):
            return float(c)
        tensors[where] = c.detach().cpu().contiguous()
        return {"tensor": where}

    if plan.late:
        raise PlanError("a plan whose coefficients depend on the data cannot be saved; save its recipe (plan.recipe.to_json())")
    if plan.start is not None:
        raise PlanError("a plan with a start transform cannot be saved; save its recipe (plan.recipe.to_json())")
    stages = []
    for k, s in enumerate(plan.stages):
        stage: dict[str, Any] = {
            "node": _numbers(s.node), "predict": number(s.predict), "carry": number(s.carry), "kind": s.kind, "step": s.step,
        }
        if s.mix is not None:
            stage["mix"] = [value(c, f"stage{k}.{name}") for name, c in zip("pq", s.mix, strict=True)]
        stages.append(stage)
    final = number(plan.final)
    return {
        "format": FORMAT, "stages": stages, "final": final, "nodes": [_numbers(n) for n in plan.nodes],
        "hooks": [hook_to_data(h) for h in plan.hooks], "recipe": _recipe_text(plan.recipe),
        "maps": [[m.name, m.biased] for m in plan.maps],
        "rows": [
            {
                "x": value(r.x, f"row{i}.x"), "x_T": value(r.x_T, f"row{i}.x_T"),
                "m": {str(j): value(c, f"row{i}.m{j}") for j, c in r.m.items()},
                "noise": [r.noise.coefficient, r.noise.start, r.noise.stop] if r.noise else None,
                "offset": None if r.offset is None else value(r.offset, f"row{i}.offset"),
            }
            for i, r in enumerate(rows)
        ],
    }


def _recipe_text(recipe: Recipe | None) -> str | None:
    """None too for a recipe that holds a calibration itself: the plan has the numbers."""
    try:
        return None if recipe is None else recipe.to_json()
    except OptionError:
        return None


def plan_from_data(data: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Plan:
    """The plan from ``plan_to_data``'s values."""
    if data.get("format") != FORMAT:
        raise PlanError(f"the plan file has format {data.get('format')!r}, this FewStep reads {FORMAT}")

    def value(c: Any) -> Coefficient:
        return tensors[c["tensor"]] if isinstance(c, dict) else float(c)

    rows = [
        Row(
            value(r["x"]), {int(j): value(c) for j, c in r["m"].items()}, value(r["x_T"]),
            NoiseTerm(*r["noise"]) if r["noise"] else None, None if r["offset"] is None else tensors[r["offset"]["tensor"]],
        )
        for r in data["rows"]
    ]
    rows = [IDENTITY if row.is_identity else row for row in rows]
    stages = tuple(
        Stage(
            _node(s["node"]), rows[s["carry"]], rows[s["predict"]], s["kind"], s["step"],
            (value(s["mix"][0]), value(s["mix"][1])) if "mix" in s else None,
        )
        for s in data["stages"]
    )
    return Plan(
        stages, tuple(_node(n) for n in data["nodes"]), rows[data["final"]],
        tuple(hook_from_data(h) for h in data["hooks"]), Recipe.from_json(data["recipe"]) if data["recipe"] else None,
        maps=tuple(OutputMap(name, biased=biased) for name, biased in data.get("maps", ())),
    )


def _numbers(node: Node) -> list[str]:
    # as text: JSON has no infinity, and lambda is infinite at both pure ends
    return [repr(v) for v in node]


def _node(numbers: list[str]) -> Node:
    return Node(*(float(v) for v in numbers))

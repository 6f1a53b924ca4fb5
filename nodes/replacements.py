"""Nodes that have taken the place of older ones, told to hosts that can mend saved workflows by themselves.

A node's id and inputs are never changed (``tests/data/contract.json`` holds them). Where that must be, the new node gets a new
id, the old one stays, marked as deprecated, and an entry here says how one becomes the other.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("fewstep")


@dataclass(frozen=True)
class Replacement:
    """How an old node becomes a new one.

    Attributes:
        old, new: node ids.
        widgets: the old node's widgets in their saved order.
        inputs: by the new input's name the old one's.
        values: by the new input's name a value that the old node did not have.
        outputs: by the new output's number the old one's.
    """

    old: str
    new: str
    widgets: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[int, int] = field(default_factory=lambda: {0: 0})


_tasks: set[asyncio.Task[None]] = set()
REPLACEMENTS: tuple[Replacement, ...] = ()  # none so far


def install(replacements: tuple[Replacement, ...] = REPLACEMENTS, host_api: Any = None) -> bool:
    """Registers ``replacements`` with a ComfyUI that has node replacement; False where it has not, or there are none.

    Args:
        host_api: the host's module ``comfy_api.latest``; imported where it is None.
    """
    if not replacements:
        return False
    try:
        api = importlib.import_module("comfy_api.latest") if host_api is None else host_api
        register, form = api.ComfyAPI().node_replacement.register, api.io.NodeReplace
    except (ImportError, AttributeError):
        log.info("FewStep: this ComfyUI does not replace old nodes by itself")
        return False
    work = _register(register, [form(**as_arguments(entry)) for entry in replacements])
    try:
        task = asyncio.get_running_loop().create_task(work)
        _tasks.add(task)  # the loop alone would let it be collected
        task.add_done_callback(_report)
    except RuntimeError:  # packs are mostly loaded before the loop runs
        asyncio.run(work)
    return True


def as_arguments(entry: Replacement) -> dict[str, Any]:
    """The arguments of the host's ``NodeReplace``."""
    return {
        "new_node_id": entry.new, "old_node_id": entry.old, "old_widget_ids": list(entry.widgets),
        "input_mapping": [{"new_id": new, "old_id": old} for new, old in entry.inputs.items()]
        + [{"new_id": new, "set_value": value} for new, value in entry.values.items()],
        "output_mapping": [{"new_idx": new, "old_idx": old} for new, old in entry.outputs.items()],
    }


async def _register(register: Any, entries: list[Any]) -> None:
    for entry in entries:
        await register(entry)


def _report(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and task.exception() is not None:
        log.warning("FewStep: its node replacements are not known to the host: %s", task.exception())

"""The nodes: sockets, widgets and words. No numerics here; all of that is in ``fewstep.samplers``.

Every node module lists its classes in ``NODES``. A module that cannot be imported is logged and left out, so that one
fault costs one module and not the pack.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

log = logging.getLogger("fewstep")

MODULES = (
    "demo", "solvers", "sa_solver", "consistency", "correctors", "compensation", "fitted", "teleport", "schedule", "schedules",
    "ksampler", "inspector", "compare", "advisor", "calibration", "calibrate_moments", "calibrate_plan", "calibrate_ratios",
    "calibrate_statistics", "statistics", "prompts", "distilled", "lora_steps",
)


def collect(modules: tuple[str, ...] = MODULES) -> tuple[dict[str, type[Any]], dict[str, str]]:
    """(classes by node id, display names by node id) of the modules that can be imported; a class's name is its id."""
    classes: dict[str, type[Any]] = {}
    for name in modules:
        try:
            module = importlib.import_module(f".{name}", __name__)
        except Exception:  # whatever it is, the other nodes should still load
            log.exception("FewStep: the nodes of '%s' are not available", name)
            continue
        classes.update({node.__name__: node for node in module.NODES})
    return classes, {node_id: node.DISPLAY_NAME for node_id, node in classes.items()}


NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = collect()

if "comfy.samplers" in sys.modules:  # only in a running ComfyUI, which has it loaded before any pack
    from . import comfy_adapters, plan_route, replacements, stock_lists

    comfy_adapters.add_shipped_loras()  # now: the stock loaders may be asked for their lists before the pack's nodes are
    stock_lists.install()
    plan_route.install()
    replacements.install()

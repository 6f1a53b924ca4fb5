"""Workflow files in, and workflows made from a few arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..nodes import NODE_CLASS_MAPPINGS
from ..samplers.errors import OptionError, suggest
from .errors import HostInputError
from .ui_format import is_ui_format, to_api

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def load_workflow(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(prompt, extra_data) of a workflow file: JSON in API form or as the frontend saves it, or a PNG that carries one.

    Raises HostInputError for files that cannot be read as such.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HostInputError(f"cannot read {path}: {error.strerror}") from error
    workflow: Any = None
    if data.startswith(PNG_MAGIC):
        from PIL import Image

        try:
            with Image.open(path) as picture:
                texts = dict(getattr(picture, "text", {}))
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises on damaged files
            raise HostInputError(f"{path} is not a readable picture: {error}") from error
        found = {name: _json(texts[name], f"the text '{name}' in {path}") for name in ("prompt", "workflow") if name in texts}
        if not found:
            raise HostInputError(f"{path} is a picture without a workflow inside (it has no text 'prompt' or 'workflow')")
        workflow = found.get("workflow")
        prompt = found.get("prompt", workflow)
    else:
        prompt = _json(data, path)
    if is_ui_format(prompt):
        from .executor import all_classes

        prompt, workflow = to_api(prompt, all_classes()), prompt
    if isinstance(prompt, dict) and isinstance(prompt.get("prompt"), dict):
        extra = prompt.get("extra_data")
        return prompt["prompt"], extra if isinstance(extra, dict) else {}
    return prompt, {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}


def _json(text: str | bytes, name: str | Path) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise HostInputError(f"{name} is neither JSON nor a PNG picture") from error
    except json.JSONDecodeError as error:
        raise HostInputError(f"{name} is not JSON: {error}") from error
    except RecursionError as error:
        raise HostInputError(f"{name} is not a workflow: its JSON is nested too deep to be read") from error


def sample_workflow(
    *, form: str, prompt: str, negative: str, batch: int, size: int, seed: int, steps: int, cfg: float, solver: str,
    schedule: str, options: Mapping[str, Any], prefix: str = "fewstep",
) -> dict[str, dict[str, Any]]:
    """A workflow that draws digits with the demo model.

    Without ``options`` the solver's preset is used, which lowers the order where there are few steps; with options the
    solver's own node. Raises OptionError for an option that the node does not have.
    """
    sampler: dict[str, Any] = {}
    graph: dict[str, dict[str, Any]] = {
        "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": form}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": negative, "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": size, "height": size, "batch_size": batch}},
    }
    if options:
        graph["5"] = solver_entry(solver, options)
        sampler = {"sampler": ["5", 0]}
    graph["6"] = {"class_type": "FewStepKSampler", "inputs": {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": seed, "steps": steps,
        "cfg": cfg, "solver": solver, "schedule": schedule, "denoise": 1.0, **sampler,
    }}
    graph["7"] = {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}}
    graph["8"] = {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": prefix}}
    return graph


def solver_entry(solver: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The node of a solver with ``options`` as its widgets, the rest at their defaults."""
    for node_id, node in NODE_CLASS_MAPPINGS.items():
        methods = {value: key for key, value in getattr(node, "METHODS", {}).items()}
        if solver not in (*methods, None if methods else getattr(node, "SOLVER", None)):
            continue
        widgets = {name: _default(entry) for name, entry in node.INPUT_TYPES()["required"].items()}
        chosen = {"method": methods[solver]} if methods else {}
        unknown = [name for name in options if name not in widgets]
        if unknown:
            raise OptionError(
                f"{node_id} has no option {unknown[0]!r}, it has {', '.join(widgets)}{suggest(unknown[0], widgets)}"
            )
        return {"class_type": node_id, "inputs": {**widgets, **chosen, **options}}
    raise OptionError(f"there is no node for the solver {solver!r}")


def _default(entry: tuple[Any, dict[str, Any]]) -> Any:
    return entry[1].get("default", entry[0][0] if isinstance(entry[0], list) else None)

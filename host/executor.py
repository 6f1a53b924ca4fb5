"""Running workflows in API form: sources first, unchanged nodes from the cache."""

from __future__ import annotations

import hashlib
import math
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..nodes import NODE_CLASS_MAPPINGS
from ..nodes.host import use_host
from . import stock
from .embedded import EmbeddedHost
from .errors import InterruptProcessingException, NodeExecutionError
from .stock_loaders import loaders
from .validate import Checked, Classes, Prompt, check_prompt, input_specs, is_link, ordered

Emit = Callable[[str, dict[str, Any]], None]


def all_classes(demo_checkpoint: bool = False) -> dict[str, type[Any]]:
    """The pack's nodes and the stock nodes built in here, by id; ``demo_checkpoint``: see ``stock_loaders``."""
    return {**loaders(demo_checkpoint), **{node.__name__: node for node in stock.NODES}, **NODE_CLASS_MAPPINGS}


@dataclass(frozen=True)
class NodeResult:
    """What a node gave: per output slot the list of its values, and what it wants shown."""

    slots: list[list[Any]]
    ui: dict[str, list[Any]] | None


@dataclass
class RunResult:
    """One run of a workflow.

    Attributes:
        ui: by node id what output nodes want shown, e.g. {"images": [{"filename", "subfolder", "type"}]}.
        values: by node id the values of its output slots, each a list.
        executed, cached: ids of the nodes that ran, and of those that did not need to.
        node_errors: faults of outputs that were left out, by node id.
    """

    prompt_id: str
    ui: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    values: dict[str, list[list[Any]]] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    node_errors: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Executor:
    """Runs workflows one after the other; a node whose class, constants and ancestors are unchanged does not run again.

    Args:
        host: what the nodes reach; see ``EmbeddedHost``.
        classes: node classes by id; all known ones by default.
        emit: called with the host's events and their data (``execution_start``, ``execution_cached``, ``executing``,
            ``progress``, ``executed``, ``execution_success``, ``execution_error``, ``execution_interrupted``).
    """

    def __init__(self, host: EmbeddedHost, classes: Classes | None = None, emit: Emit | None = None) -> None:
        self.host = host
        self.classes = all_classes() if classes is None else dict(classes)
        self._emit = emit or (lambda event, data: None)
        self._cache: dict[str, NodeResult] = {}
        self._instances: dict[tuple[str, type[Any]], Any] = {}

    def check(self, prompt: Any, targets: Iterable[str] | None = None) -> Checked:
        """Validates without running; raises WorkflowError."""
        with use_host(self.host):  # nodes list files of the host's folders
            return check_prompt(prompt, self.classes, targets)

    def execute(
        self, prompt: Any, extra_data: Mapping[str, Any] | None = None, *, prompt_id: str | None = None,
        targets: Iterable[str] | None = None,
    ) -> RunResult:
        """Validates and runs a workflow.

        Args:
            prompt: {node id: {"class_type", "inputs"}}.
            extra_data: ``extra_pnginfo`` goes into pictures.
            targets: output nodes to run, all by default.

        Raises:
            WorkflowError: it fails validation; nothing was run.
            NodeExecutionError: a node raised; what ran before it stays cached.
            InterruptProcessingException: ``host.interrupt()`` was called.
        """
        checked = self.check(prompt, targets)
        result = RunResult(prompt_id or str(uuid.uuid4()), node_errors=checked.node_errors)
        order = ordered(checked.prompt, checked.outputs)
        extra = dict(extra_data or {})
        hidden = {"PROMPT": prompt, "EXTRA_PNGINFO": extra.get("extra_pnginfo"), "DYNPROMPT": None}
        start = time.perf_counter()
        self.host.clear_interrupt()
        self._emit("execution_start", self._event(result))
        with use_host(self.host), torch.inference_mode():
            try:
                self._run(checked.prompt, order, hidden, result)
            except InterruptProcessingException:
                self._emit("execution_interrupted", {**self._event(result), "executed": result.executed})
                raise
            except NodeExecutionError as error:
                self._emit("execution_error", error.info)
                raise
        result.seconds = time.perf_counter() - start
        self._emit("execution_success", self._event(result))
        return result

    def _run(self, prompt: Prompt, order: list[str], hidden: Mapping[str, Any], result: RunResult) -> None:
        signatures: dict[str, str] = {}
        for i in order:
            signatures[i] = self._guarded(i, prompt, result, partial(self._signature, i, prompt, signatures, hidden))
        self._instances = {key: value for key, value in self._instances.items() if key[0] in prompt}
        known = {i for i in order if signatures[i] in self._cache}
        result.cached = [i for i in order if i in known]
        self._emit("execution_cached", {**self._event(result), "nodes": result.cached})
        listener = self.host.on_progress
        try:
            for i in order:
                if i not in known:
                    shown = {"node": i, "display_node": i, "prompt_id": result.prompt_id}
                    self._emit("executing", shown)
                    self.host.on_progress = self._progress(i, result, listener)
                    self.host.check_interrupted()
                    inputs = self._arguments(i, prompt, hidden, result)
                    self._cache[signatures[i]] = self._guarded(
                        i, prompt, result, partial(self._call, i, prompt, inputs), inputs)
                    result.executed.append(i)
                done = self._cache[signatures[i]]
                result.values[i] = done.slots
                if done.ui is not None:
                    result.ui[i] = done.ui
                    self._emit("executed", {
                        "node": i, "display_node": i, "output": done.ui, "prompt_id": result.prompt_id,
                    })
        finally:
            self.host.on_progress = listener
            current = {signatures[i] for i in order}
            self._cache = {key: value for key, value in self._cache.items() if key in current}

    def _signature(self, i: str, prompt: Prompt, signatures: Mapping[str, str], hidden: Mapping[str, Any]) -> str:
        """A digest of everything that decides a node's outputs; a NaN of IS_CHANGED never repeats."""
        kind = self.classes[prompt[i]["class_type"]]
        parts = [prompt[i]["class_type"], str(id(kind))]
        wanted = kind.INPUT_TYPES().get("hidden", {})
        if any(_hidden_name(entry) == "UNIQUE_ID" for entry in wanted.values()):
            parts.append(i)
        specs = input_specs(kind)
        for name in sorted(set(prompt[i]["inputs"]) & set(specs)):
            value = prompt[i]["inputs"][name]
            text = f"{signatures[str(value[0])]}:{value[1]}" if is_link(value) else f"{type(value).__name__} {value!r}"
            parts.append(f"{name}={text}")
        if hasattr(kind, "IS_CHANGED"):
            given = {n: None if is_link(v) else v for n, v in prompt[i]["inputs"].items() if n in specs}
            changed = kind.IS_CHANGED(**given, **_hidden(wanted, hidden, i))
            parts.append(uuid.uuid4().hex if isinstance(changed, float) and math.isnan(changed) else repr(changed))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _arguments(self, i: str, prompt: Prompt, hidden: Mapping[str, Any], result: RunResult) -> dict[str, list[Any]]:
        """Every argument of the node as a list of values."""
        kind = self.classes[prompt[i]["class_type"]]
        values = {}
        for name in input_specs(kind):
            if name in prompt[i]["inputs"]:
                value = prompt[i]["inputs"][name]
                values[name] = result.values[str(value[0])][value[1]] if is_link(value) else [value]
        values.update({n: [v] for n, v in _hidden(kind.INPUT_TYPES().get("hidden", {}), hidden, i).items()})
        return values

    def _call(self, i: str, prompt: Prompt, inputs: Mapping[str, list[Any]]) -> NodeResult:
        """Runs a node: once, or once per item where an input is a list of several."""
        kind = self.classes[prompt[i]["class_type"]]
        instance = self._instances.setdefault((i, kind), kind())
        function = getattr(instance, kind.FUNCTION)
        if getattr(kind, "INPUT_IS_LIST", False):
            returned = [function(**inputs)]
        elif any(not values for values in inputs.values()):
            returned = []
        else:
            count = max((len(values) for values in inputs.values()), default=1)
            returned = [
                function(**{name: values[min(k, len(values) - 1)] for name, values in inputs.items()}) for k in range(count)
            ]
        return _merge(kind, returned)

    def _guarded(
        self, i: str, prompt: Prompt, result: RunResult, function: Callable[[], Any], inputs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return function()
        except InterruptProcessingException:
            raise
        except Exception as reason:
            info = _error_info(i, prompt[i]["class_type"], reason, result, inputs or {})
            raise NodeExecutionError(i, prompt[i]["class_type"], info) from reason

    def _progress(self, i: str, result: RunResult, listener: Callable[..., None] | None) -> Callable[..., None]:
        def report(value: int, total: int, denoised: torch.Tensor | None) -> None:
            self._emit("progress", {"value": value, "max": total, "node": i, "prompt_id": result.prompt_id})
            if listener is not None:
                listener(value, total, denoised)

        return report

    @staticmethod
    def _event(result: RunResult) -> dict[str, Any]:
        return {"prompt_id": result.prompt_id, "timestamp": int(time.time() * 1000)}


def _hidden_name(entry: Any) -> str:
    return str(entry[0] if isinstance(entry, (tuple, list)) else entry)


def _hidden(wanted: Mapping[str, Any], values: Mapping[str, Any], i: str) -> dict[str, Any]:
    known = {**values, "UNIQUE_ID": i}
    return {name: known[_hidden_name(entry)] for name, entry in wanted.items() if _hidden_name(entry) in known}


def _merge(kind: type[Any], returned: list[Any]) -> NodeResult:
    """Joins the calls' results into one list per output slot."""
    slots: list[list[Any]] = [[] for _ in kind.RETURN_TYPES]
    lists = getattr(kind, "OUTPUT_IS_LIST", None) or (False,) * len(slots)
    ui: dict[str, list[Any]] | None = None
    for value in returned:
        values = value
        if isinstance(value, dict):
            values = value.get("result", ())
            for key, shown in value.get("ui", {}).items():
                ui = {} if ui is None else ui
                ui.setdefault(key, []).extend(shown)
        if not isinstance(values, (tuple, list)) or (len(values) < len(slots) and values):
            raise TypeError(
                f"{kind.__name__}.{kind.FUNCTION} returned {type(values).__name__}, expected a tuple of {len(slots)} outputs"
            )
        for slot, item, is_list in zip(slots, values, lists, strict=False):
            slot.extend(item) if is_list else slot.append(item)
    return NodeResult(slots, ui)


def _error_info(
    i: str, kind: str, reason: BaseException, result: RunResult, inputs: Mapping[str, list[Any]]
) -> dict[str, Any]:
    """The host's ``execution_error`` event."""
    cls = type(reason)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return {
        "prompt_id": result.prompt_id, "node_id": i, "node_type": kind, "executed": list(result.executed),
        "exception_message": f"{reason}\n", "exception_type": name, "traceback": traceback.format_tb(reason.__traceback__),
        "current_inputs": {n: [_short(v) for v in values] for n, values in inputs.items()},
        "current_outputs": list(result.values), "timestamp": int(time.time() * 1000),
    }


def _short(value: Any) -> Any:
    if isinstance(value, (int, float, bool, str)) or value is None:
        return value
    return f"tensor{list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__

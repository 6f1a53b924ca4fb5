"""Validation of workflows in API form, with the host's own error types; nothing is run here.

Every fault of every node is reported at once, with the node's id, the input's name and how to mend it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..samplers.errors import suggest
from .errors import WorkflowError

Prompt = dict[str, dict[str, Any]]
Classes = Mapping[str, type[Any]]
WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass(frozen=True)
class InputSpec:
    """One entry of ``INPUT_TYPES``: ``type`` is a type name, or the list of a combo's choices."""

    name: str
    type: Any
    options: Mapping[str, Any]
    required: bool


@dataclass(frozen=True)
class Checked:
    """A workflow that can run.

    Attributes:
        prompt: a copy with constants converted to their inputs' types.
        outputs: ids of the output nodes that can run.
        node_errors: the faults of those that cannot.
    """

    prompt: Prompt
    outputs: list[str]
    node_errors: dict[str, Any]


def error(kind: str, message: str, details: str = "", **extra: Any) -> dict[str, Any]:
    """One error in the host's form."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def input_specs(node: type[Any]) -> dict[str, InputSpec]:
    """Required and optional inputs by name."""
    types = node.INPUT_TYPES()
    return {
        name: InputSpec(name, entry[0], entry[1] if len(entry) > 1 else {}, group == "required")
        for group in ("required", "optional") for name, entry in types.get(group, {}).items()
    }


def is_link(value: Any) -> bool:
    """Whether an input's value refers to another node's output: any list does."""
    return isinstance(value, list)


def links(node: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(input name, source node id) of a node's links that have the right form."""
    for name, value in node.get("inputs", {}).items():
        if is_link(value) and len(value) == 2:
            yield name, str(value[0])


def check_prompt(prompt: Any, classes: Classes, targets: Iterable[str] | None = None) -> Checked:
    """Validates a workflow, or the part of it that ``targets`` (output node ids) need.

    Raises WorkflowError: ``invalid_prompt`` (not API form, unknown node class, or a circle of links),
    ``prompt_no_outputs``, or ``prompt_outputs_failed_validation`` where no output can run.
    """
    _check_form(prompt, classes)
    outputs = [i for i, node in prompt.items() if getattr(classes[node["class_type"]], "OUTPUT_NODE", False)]
    if targets is not None:
        wanted = set(targets)
        outputs = [i for i in outputs if i in wanted]
    if not outputs:
        raise WorkflowError(error("prompt_no_outputs", "The workflow has no output node: add one, such as SaveImage."))
    copy = {i: {**node, "inputs": dict(node.get("inputs", {}))} for i, node in prompt.items()}
    reach = {output: set(ordered(copy, [output])) for output in outputs}
    faults = {
        i: found for i in copy if any(i in nodes for nodes in reach.values())
        and (found := _check_node(i, copy, classes))
    }
    node_errors = {
        i: {
            "errors": found, "dependent_outputs": [o for o in outputs if i in reach[o]],
            "class_type": copy[i]["class_type"],
        } for i, found in faults.items()
    }
    good = [o for o in outputs if not reach[o] & set(faults)]
    if not good:
        refuse(node_errors)
    return Checked(copy, good, node_errors)


def refuse(node_errors: Mapping[str, Any]) -> None:
    """Raises WorkflowError where there are faults."""
    if node_errors:
        message = error("prompt_outputs_failed_validation", "The workflow's outputs failed validation.", describe(node_errors))
        raise WorkflowError(message, dict(node_errors))


def describe(node_errors: Mapping[str, Any]) -> str:
    """All node errors as text, one a line."""
    return "\n".join(
        f"node {i} ({entry['class_type']}): {fault['message']}"
        + (f" [{fault['details']}]" if fault["details"] and fault["details"] not in fault["message"] else "")
        for i, entry in node_errors.items() for fault in entry["errors"]
    )


def ordered(prompt: Prompt, outputs: Iterable[str]) -> list[str]:
    """The outputs and all nodes they need, sources first. Raises WorkflowError on a circle; dangling links are left out."""
    done: list[str] = []
    state: dict[str, int] = {}  # 1: being visited, 2: done
    for output in outputs:
        stack = [(output, iter([s for _, s in links(prompt[output])]))] if state.get(output) != 2 else []
        state.setdefault(output, 1)
        while stack:
            node, sources = stack[-1]
            source = next(sources, None)
            if source is None:
                stack.pop()
                state[node] = 2
                done.append(node)
            elif source in prompt and state.get(source) == 1:
                circle = [n for n, _ in stack]
                names = " -> ".join([*circle[circle.index(source):], source])
                raise WorkflowError(error("invalid_prompt", "The workflow's links form a circle; remove one of them.", names))
            elif source in prompt and source not in state:
                state[source] = 1
                stack.append((source, iter([s for _, s in links(prompt[source])])))
    return done


def _check_form(prompt: Any, classes: Classes) -> None:
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise WorkflowError(error(
            "invalid_prompt", "This is a workflow in the editor's form; export it in API form (menu: Workflow, Export (API))."
        ))
    if not isinstance(prompt, dict) or not prompt:
        raise WorkflowError(error("invalid_prompt", "A workflow is a JSON object of nodes by id, with at least one node."))
    for i, node in prompt.items():
        formed = isinstance(node, dict) and isinstance(node.get("class_type"), str)
        if not formed or not isinstance(node.get("inputs", {}), dict):
            raise WorkflowError(error(
                "invalid_prompt", "Cannot execute: every node needs a 'class_type' and an object of 'inputs'.", f"node '{i}'"
            ))
        if node["class_type"] not in classes:
            kind = node["class_type"]
            hint = suggest(kind, classes) or "."
            raise WorkflowError(error(
                "invalid_prompt", f"Cannot execute because the node class {kind} does not exist here{hint}",
                f"node '{i}'", node_id=i, class_type=kind,
            ))


def _check_node(i: str, prompt: Prompt, classes: Classes) -> list[dict[str, Any]]:
    node, kind = prompt[i], classes[prompt[i]["class_type"]]
    custom = getattr(kind, "VALIDATE_INPUTS", None)
    parameters = inspect.signature(custom).parameters if custom else {}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    faults: list[dict[str, Any]] = []
    received: dict[str, Any] = {}
    for spec in input_specs(kind).values():
        own = takes_all or spec.name in parameters
        if spec.name not in node["inputs"]:
            if spec.required:
                faults.append(error(
                    "required_input_missing", f"Required input is missing: give '{spec.name}' a value or a link.", spec.name,
                    input_name=spec.name,
                ))
        elif is_link(node["inputs"][spec.name]):
            fault, received[spec.name] = _check_link(spec, node["inputs"][spec.name], prompt, classes)
            mismatch = fault is not None and fault["type"] == "return_type_mismatch"
            if fault is not None and not (mismatch and "input_types" in parameters):
                faults.append(fault)
        else:
            fault, node["inputs"][spec.name] = _check_constant(spec, node["inputs"][spec.name], own, classes)
            if fault is not None:
                faults.append(fault)
    if custom is not None and not faults:
        faults += _check_custom(custom, parameters, takes_all, node["inputs"], input_specs(kind), received)
    return faults


def _check_link(spec: InputSpec, value: list[Any], prompt: Prompt, classes: Classes) -> tuple[dict[str, Any] | None, Any]:
    def bad(why: str) -> tuple[dict[str, Any], None]:
        return error(
            "bad_linked_input", f"Bad linked input '{spec.name}': {why}", f"{spec.name} is {value!r}", input_name=spec.name,
            received_value=value,
        ), None

    if len(value) != 2 or not isinstance(value[1], int) or isinstance(value[1], bool):
        return bad("a link is a list [node id, output number].")
    source = str(value[0])
    if source not in prompt:
        return bad(f"there is no node '{source}'{suggest(source, prompt) or '.'}")
    outputs = classes[prompt[source]["class_type"]].RETURN_TYPES
    if not 0 <= value[1] < len(outputs):
        there = ", ".join(f"{n} ({_name(kind)})" for n, kind in enumerate(outputs)) or "none"
        return bad(f"node '{source}' ({prompt[source]['class_type']}) has no output {value[1]}; its outputs are: {there}.")
    received = outputs[value[1]]
    if not _fits(received, spec.type):
        fitting = [n for n, t in enumerate(outputs) if _fits(t, spec.type)]
        mend = f"; its output {fitting[0]} would fit" if fitting else ""
        return error(
            "return_type_mismatch",
            f"Return type mismatch between linked nodes: '{spec.name}' expects {_name(spec.type)}, output {value[1]} of node "
            f"'{source}' is {_name(received)}{mend}.",
            f"{spec.name}, received_type({_name(received)}) mismatch input_type({_name(spec.type)})", input_name=spec.name,
            received_type=received, linked_node=value,
        ), received
    return None, received


def _fits(received: Any, expected: Any) -> bool:
    if "*" in (received, expected) or received == expected:
        return True
    if isinstance(received, list) or isinstance(expected, list):
        return "COMBO" in (received, expected)
    return set(str(received).split(",")) <= {part.strip() for part in str(expected).split(",")}


def _name(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else str(kind)


def _check_constant(spec: InputSpec, value: Any, own: bool, classes: Classes) -> tuple[dict[str, Any] | None, Any]:
    extra = {"input_name": spec.name, "received_value": value}
    choices = spec.type if isinstance(spec.type, list) else spec.options.get("options") if spec.type == "COMBO" else None
    if choices is not None:
        if value in choices or own:
            return None, value
        listed = ", ".join(map(str, choices[:20])) + (", ..." if len(choices) > 20 else "")
        return error(
            "value_not_in_list", f"Value not in list: '{spec.name}' is {value!r}{suggest(str(value), map(str, choices)) or '.'}",
            f"{spec.name}: {value!r} not in [{listed}]", **extra,
        ), value
    if spec.type in WIDGETS:
        try:
            if (spec.type == "BOOLEAN" and isinstance(value, str)) or isinstance(value, dict) or value is None:
                raise ValueError(f"{type(value).__name__} {value!r}")
            value = WIDGETS[spec.type](value)
        except (ValueError, TypeError, OverflowError) as reason:
            return error(
                "invalid_input_type", f"Failed to convert '{spec.name}' to {spec.type}: it is {value!r}.",
                f"{spec.name}, {value!r}, {reason}", **extra,
            ), value
        low, high = spec.options.get("min"), spec.options.get("max")
        if low is not None and not own and not value >= low:
            message = f"Value {value} of '{spec.name}' is smaller than its minimum {low}."
            return error("value_smaller_than_min", message, spec.name, **extra), value
        if high is not None and not own and not value <= high:
            message = f"Value {value} of '{spec.name}' is bigger than its maximum {high}."
            return error("value_bigger_than_max", message, spec.name, **extra), value
        return None, value
    if any(spec.type in getattr(c, "RETURN_TYPES", ()) for c in classes.values()):
        return error(
            "invalid_input_type", f"'{spec.name}' is {value!r}, expected a link [node id, output number] to a {spec.type}.",
            spec.name, **extra,
        ), value
    return None, value


def _check_custom(
    custom: Any, parameters: Mapping[str, Any], takes_all: bool, inputs: Mapping[str, Any], specs: Mapping[str, InputSpec],
    received: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Calls VALIDATE_INPUTS with the inputs it names; linked ones are None."""
    named = [n for n in specs if n in inputs and (takes_all or n in parameters)]
    arguments = {n: None if is_link(inputs[n]) else inputs[n] for n in named}
    if "input_types" in parameters:
        arguments["input_types"] = dict(received)
    try:
        verdict = custom(**arguments)
    except Exception as reason:  # a fault of the node's own check is shown like any other
        verdict = f"its check failed: {type(reason).__name__}: {reason}"
    if verdict is True:
        return []
    text = "" if verdict is False else f" - {verdict}"
    return [
        error("custom_validation_failed", f"Custom validation failed for '{n}'{text}", f"{n}{text}", input_name=n) for n in named
    ]

"""The part of an API-form graph that can be known before it runs: solvers, correctors, schedules, and their model's sampling.

Only nodes of this pack that make SAMPLER or SIGMAS out of widgets, such sockets, calibration files and MODEL are evaluated.
For MODEL stands an object that knows its ``model_sampling`` and nothing else, so no network is loaded or run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from .calibration import SOCKET, opened
from .host import get_host
from .last_runs import LastRun, newest

OUTPUTS = {"SAMPLER", "SIGMAS"}
LORA_LOADERS = ("LoraLoader", "LoraLoaderModelOnly")  # they leave the noise schedule as it is
PRIMITIVES = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveBoolean", "PrimitiveString")
LOADER = "FewStepLoadCalibration"
MAX_STEPS = 200  # a drawing of more has nothing to read in it


class Unknown(Exception):
    """Something that only a run can tell; the text says what."""


class KnownModel(NamedTuple):
    """Stands for a MODEL of the host in schedule nodes.

    Attributes:
        words: what it is, for people.
        known: whether it is the connected model and not an assumption.
    """

    model_sampling: Any
    words: str
    known: bool

    def get_model_object(self, name: str) -> Any:
        """As the host's; raises Unknown for anything else than ``model_sampling``."""
        if name != "model_sampling":
            raise Unknown(f"the model's {name} is known only in a run")
        return self.model_sampling


class LiveGraph:
    """A graph in API form, {node id: {"class_type", "inputs"}}.

    Args:
        run: the last run of the recipe that is looked at; its model stands in where the connected one is not known.
    """

    def __init__(self, prompt: Mapping[str, Any], run: LastRun | None = None) -> None:
        from . import NODE_CLASS_MAPPINGS

        self.prompt, self.run, self.classes = prompt, run, NODE_CLASS_MAPPINGS

    def inputs(self, i: str) -> Mapping[str, Any]:
        """The inputs of node ``i``; raises Unknown where there is no such node."""
        if i not in self.prompt:
            raise Unknown(f"node {i} is not in the graph")
        inputs: Mapping[str, Any] = self.prompt[i]["inputs"]
        return inputs

    def kind(self, i: str) -> str:
        """The node's class."""
        return str(self.prompt[i]["class_type"])

    def readers(self, i: str) -> Iterator[str]:
        """Nodes with an input from node ``i``."""
        for j, node in self.prompt.items():
            if any(is_link(value) and str(value[0]) == i for value in node["inputs"].values()):
                yield j

    def evaluates(self, i: str) -> bool:
        """Whether node ``i`` makes its outputs out of widgets, samplers, sigmas and a model's sampling alone."""
        node = self.classes.get(self.kind(i))
        return node is not None and bool(node.RETURN_TYPES) and set(node.RETURN_TYPES) <= OUTPUTS

    def value(self, link: Any, seen: tuple[str, ...] = ()) -> Any:
        """What a linked SAMPLER or SIGMAS socket will carry. Raises Unknown, or the node's own errors."""
        i, slot = str(link[0]), int(link[1])
        inputs = self.inputs(i)
        if i in seen:
            raise Unknown("the links form a circle")
        if not self.evaluates(i):
            raise Unknown(f"what {self.kind(i)} (node {i}) gives is known only in a run")
        node = self.classes[self.kind(i)]
        groups = node.INPUT_TYPES()
        arguments = {}
        for group in ("required", "optional"):
            for name, (kind, *settings) in groups.get(group, {}).items():
                if name in inputs:
                    arguments[name] = self.argument(name, kind, settings[0] if settings else {}, inputs[name], (*seen, i))
                elif group == "required":
                    raise Unknown(f"{self.kind(i)} (node {i}) has no {name} yet")
        return getattr(node(), node.FUNCTION)(**arguments)[slot]

    def widget(self, i: str, name: str) -> Any:
        """The value of one widget of node ``i``; an optional one that is not in the graph has its default."""
        groups = self.classes[self.kind(i)].INPUT_TYPES()
        kind, settings = (groups["required"] | groups.get("optional", {}))[name]
        missing = None if name in groups["required"] else settings["default"]
        return self.argument(name, kind, settings, self.inputs(i).get(name, missing))

    def argument(self, name: str, kind: Any, settings: Mapping[str, Any], value: Any, seen: tuple[str, ...] = ()) -> Any:
        """One input's value."""
        if kind == "MODEL":
            return self.model(value)
        if not isinstance(kind, list) and kind in OUTPUTS and is_link(value):
            return self.value(value, seen)
        if kind == SOCKET and is_link(value) and self.prompt.get(str(value[0]), {}).get("class_type") == LOADER:
            return opened(self.widget(str(value[0]), "file"))  # whether it fits the model is checked in the run
        if not isinstance(kind, list) and kind not in WIDGETS:
            raise Unknown(f"{name} is known only in a run")
        if is_link(value):
            if self.prompt.get(str(value[0]), {}).get("class_type") not in PRIMITIVES:
                raise Unknown(f"{name} is linked, its value is known only in a run")
            value = self.inputs(str(value[0])).get("value")
        return checked_constant(name, kind, settings, value)

    def model(self, link: Any) -> KnownModel:
        """The connected model, or the best assumption for it."""
        for _ in range(100):
            if not is_link(link) or str(link[0]) not in self.prompt:
                break
            kind, inputs = self.kind(str(link[0])), self.inputs(str(link[0]))
            if kind == "FewStepDemoCheckpoint" and isinstance(inputs.get("form"), str):
                form = inputs["form"]
                node = self.classes[kind].INPUT_TYPES()["required"]["form"]
                checked_constant("form", node[0], node[1], form)
                return KnownModel(get_host().demo_sampling(form), f"the demo model ({form})", True)
            if kind not in LORA_LOADERS:
                break
            link = inputs.get("model")
        if self.run is not None:
            return KnownModel(self.run.model_sampling, "the model of this solver's last run", True)
        last = newest()
        if last is not None:
            return KnownModel(last.model_sampling, "the model of the last run", False)
        return KnownModel(get_host().demo_sampling("eps"), "a Stable Diffusion model", False)


WIDGETS: Mapping[str, Any] = {"INT": (int,), "FLOAT": (int, float), "BOOLEAN": (bool,), "STRING": (str,)}


def checked_constant(name: str, kind: Any, settings: Mapping[str, Any], value: Any) -> Any:
    """A widget's value; raises OptionError for one that the widget could not have."""
    from ..samplers.errors import OptionError, check_choice, check_range

    if isinstance(kind, list):
        check_choice(name, value, kind)
        return value
    number = kind in ("INT", "FLOAT")
    if not isinstance(value, WIDGETS[kind]) or (number and isinstance(value, bool)):
        raise OptionError(f"{name} is {value!r}, expected {kind}")
    if number:
        check_range(name, value, settings.get("min", -math.inf), settings.get("max", math.inf))
    if name == "steps" and kind == "INT" and value > MAX_STEPS:
        raise OptionError(f"plans of more than {MAX_STEPS} steps are not drawn; this one has {value} and runs all the same")
    return value


def is_link(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether an input is [node id, output number]."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], (str, int)) \
        and isinstance(value[1], int) and not isinstance(value[1], bool) and value[1] >= 0

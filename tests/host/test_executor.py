"""Validation in the host's error form, execution and caching, with small nodes made for it."""

import json
import math

import pytest
import torch
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.errors import InterruptProcessingException, NodeExecutionError, WorkflowError
from fewstep.host.executor import Executor, all_classes
from fewstep.nodes.host import get_host

CALLS = []


class Source:
    """A number; several with OUTPUT_IS_LIST."""

    RETURN_TYPES = ("INT", "STRING")
    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "n": ("INT", {"default": 1, "min": 0, "max": 10}), "x": ("FLOAT", {"min": -1.0, "max": 1.0}),
            "pick": (["red", "green"],), "on": ("BOOLEAN", {}), "text": ("STRING", {})}}

    def go(self, n, x, pick, on, text):
        CALLS.append(("Source", n, x, pick, on, text))
        return n, text


class Many:
    RETURN_TYPES, FUNCTION, OUTPUT_IS_LIST = ("INT", "INT"), "go", (True, False)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {})}}

    def go(self, count):
        return list(range(count)), count


class Add:
    RETURN_TYPES, FUNCTION = ("INT",), "go"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"a": ("INT", {})}, "optional": {"b": ("INT", {"default": 100})}}

    def go(self, a, b=100):
        CALLS.append(("Add", a, b))
        return (a + b,)


class Gather:
    INPUT_IS_LIST, RETURN_TYPES, FUNCTION = True, ("INT",), "go"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"a": ("INT", {}), "scale": ("INT", {})}}

    def go(self, a, scale):
        return (sum(a) * scale[0],)


class Show:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "go", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT", {})},
                "hidden": {"me": "UNIQUE_ID", "prompt": "PROMPT", "extra": "EXTRA_PNGINFO"}}

    def go(self, value, me, prompt, extra):
        CALLS.append(("Show", value, me, extra))
        assert prompt[me]["class_type"] == "Show"
        return {"ui": {"value": [value]}}


class Fresh(Add):
    answer = math.nan

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return cls.answer


class Picky(Add):
    @classmethod
    def VALIDATE_INPUTS(cls, b=None):
        return True if b is None or b % 2 == 0 else f"{b} is odd"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"a": ("INT", {}), "b": ("INT", {"max": 10})}}


class Broken(Add):
    def go(self, a, b=100):
        raise KeyError("inside")


class NotATuple(Add):
    def go(self, a, b=100):
        return 5


class Grad(Add):
    def go(self, a, b=100):
        return (int(torch.is_inference_mode_enabled()),)


TEST_NODES = {c.__name__: c for c in (Source, Many, Add, Gather, Show, Fresh, Picky, Broken, NotATuple, Grad)}
GOOD = {"n": 3, "x": 0.125, "pick": "red", "on": True, "text": "t"}


def graph(*nodes):
    """graph(("Add", {...}), ...) -> nodes with the ids 1, 2, ..."""
    return {str(i): {"class_type": kind, "inputs": dict(inputs)} for i, (kind, inputs) in enumerate(nodes, 1)}


@pytest.fixture
def executor(tmp_path):
    CALLS.clear()
    events = []
    made = Executor(EmbeddedHost(tmp_path), TEST_NODES, lambda event, data: events.append((event, data)))
    made.events = events
    return made


def faults(executor, prompt):
    with pytest.raises(WorkflowError) as caught:
        executor.check(prompt)
    body = caught.value.as_response()
    json.dumps(body)
    return body


@pytest.mark.parametrize(("change", "kind", "words"), [
    ({"n": None}, "invalid_input_type", "'n' to INT"),
    ({"n": "three"}, "invalid_input_type", "'three'"),
    ({"n": -1}, "value_smaller_than_min", "minimum 0"),
    ({"n": 11}, "value_bigger_than_max", "maximum 10"),
    ({"x": 1.5}, "value_bigger_than_max", "maximum 1.0"),
    ({"x": float("nan")}, "value_smaller_than_min", "minimum -1.0"),
    ({"on": "no"}, "invalid_input_type", "'on' to BOOLEAN"),
    ({"pick": "gren"}, "value_not_in_list", "did you mean 'green'"),
    ({"n": ["9", 0]}, "bad_linked_input", "no node '9'"),
    ({"n": ["3"]}, "bad_linked_input", "a link is a list"),
    ({"n": ["3", 5]}, "bad_linked_input", "no output 5; its outputs are: 0 (INT), 1 (STRING)"),
    ({"text": ["3", 0]}, "return_type_mismatch", "its output 1 would fit"),
])
def test_faults_of_constants_and_links(executor, change, kind, words):
    prompt = graph(("Source", GOOD | change), ("Show", {"value": ["1", 0]}), ("Source", GOOD))
    body = faults(executor, prompt)
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    (entry,) = body["node_errors"].values()
    assert (entry["class_type"], entry["dependent_outputs"]) == ("Source", ["2"])
    (fault,) = entry["errors"]
    assert set(fault) == {"type", "message", "details", "extra_info"}
    assert fault["type"] == kind and words in fault["message"]
    assert fault["extra_info"]["input_name"] == next(iter(change))
    assert not CALLS


def test_every_fault_of_every_node_is_reported_at_once(executor):
    prompt = graph(("Source", {"n": 99, "x": 0.0, "pick": "blue"}), ("Add", {}), ("Show", {"value": ["1", 0]}),
                   ("Show", {"value": ["2", 0]}))
    found = {i: [f["type"] for f in e["errors"]] for i, e in faults(executor, prompt)["node_errors"].items()}
    assert found == {
        "1": ["value_bigger_than_max", "value_not_in_list", "required_input_missing", "required_input_missing"],
        "2": ["required_input_missing"]}


@pytest.mark.parametrize(("prompt", "kind", "words"), [
    ({}, "invalid_prompt", "at least one node"),
    ([1], "invalid_prompt", "JSON object"),
    ({"nodes": [], "links": []}, "invalid_prompt", "API form"),
    ({"1": {"inputs": {}}}, "invalid_prompt", "class_type"),
    (graph(("Shwo", {})), "invalid_prompt", "did you mean 'Show'"),
    (graph(("Add", {"a": 1})), "prompt_no_outputs", "output node"),
    (graph(("Add", {"a": ["2", 0]}), ("Add", {"a": ["1", 0]}), ("Show", {"value": ["2", 0]})), "invalid_prompt", "circle"),
])
def test_faults_of_the_whole_workflow(executor, prompt, kind, words):
    body = faults(executor, prompt)
    assert body["error"]["type"] == kind and words in body["error"]["message"] + body["error"]["details"]
    assert body["node_errors"] == {}


def test_sockets_need_links(executor, tmp_path):
    prompt = {"1": {"class_type": "VAEDecode", "inputs": {"samples": 3, "vae": "x"}},
              "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}}}
    with pytest.raises(WorkflowError) as caught:
        Executor(EmbeddedHost(tmp_path)).check(prompt)
    types = [fault["type"] for fault in caught.value.node_errors["1"]["errors"]]
    assert types == ["invalid_input_type"] * 2
    assert "LATENT" in str(caught.value)


def test_own_validation_replaces_the_range_check(executor):
    """As in the host: naming an input in VALIDATE_INPUTS switches off its range check."""
    show = ("Show", {"value": ["1", 0]})
    executor.check(graph(("Picky", {"a": 1, "b": 98}), show))
    executor.check(graph(("Picky", {"a": 1, "b": ["3", 0]}), show, ("Add", {"a": 1})))
    body = faults(executor, graph(("Picky", {"a": 1, "b": 7}), show))
    (fault,) = body["node_errors"]["1"]["errors"]
    assert (fault["type"], fault["details"]) == ("custom_validation_failed", "b - 7 is odd")
    body = faults(executor, graph(("Picky", {"a": 1, "b": 1e400}), show))
    assert body["node_errors"]["1"]["errors"][0]["type"] == "invalid_input_type"


def test_good_outputs_run_beside_bad_ones(executor):
    prompt = graph(("Add", {"a": 1, "b": 1}), ("Show", {"value": ["1", 0]}), ("Show", {"value": "x"}))
    result = executor.execute(prompt)
    assert result.ui == {"2": {"value": [2]}}
    assert result.node_errors["3"]["errors"][0]["type"] == "invalid_input_type"


def test_values_are_converted_and_the_given_workflow_is_not_changed(executor):
    prompt = graph(("Source", GOOD | {"n": "3", "x": "0.125", "on": 1}), ("Show", {"value": ["1", 0]}))
    before = json.dumps(prompt)
    executor.execute(prompt, {"extra_pnginfo": {"workflow": 1}})
    assert CALLS == [("Source", 3, 0.125, "red", True, "t"), ("Show", 3, "2", {"workflow": 1})]
    assert json.dumps(prompt) == before


def test_only_what_an_output_needs_runs_and_only_once(executor):
    prompt = graph(("Add", {"a": 1}), ("Show", {"value": ["1", 0]}), ("Show", {"value": ["1", 0]}), ("Add", {"a": 5}))
    result = executor.execute(prompt)
    assert [c[0] for c in CALLS] == ["Add", "Show", "Show"]
    assert result.executed == ["1", "2", "3"]
    CALLS.clear()
    assert executor.execute(prompt, targets=["3"]).cached == ["1", "3"]
    assert CALLS == []


def test_unchanged_nodes_come_from_the_cache(executor):
    prompt = graph(("Add", {"a": 1}), ("Add", {"a": ["1", 0], "b": 2}), ("Show", {"value": ["2", 0]}))
    first = executor.execute(prompt)
    prompt["2"]["inputs"]["b"] = 3
    CALLS.clear()
    second = executor.execute(prompt)
    assert [c[0] for c in CALLS] == ["Add", "Show"] and second.cached == ["1"]
    assert (first.ui["3"], second.ui["3"]) == ({"value": [103]}, {"value": [104]})
    third = executor.execute(prompt)
    assert third.executed == [] and third.ui == second.ui  # cached outputs show again


def test_the_cache_holds_the_last_workflow_only(executor):
    one, two = (graph(("Add", {"a": a}), ("Show", {"value": ["1", 0]})) for a in (1, 2))
    for prompt in (one, two, one):
        assert executor.execute(prompt).executed == ["1", "2"]


def test_is_changed(executor):
    prompt = graph(("Fresh", {"a": 1}), ("Show", {"value": ["1", 0]}))
    for answer, expected in ((math.nan, ["1", "2"]), (math.nan, ["1", "2"]), ("digest", ["1", "2"]), ("digest", [])):
        Fresh.answer = answer
        assert executor.execute(prompt).executed == expected


def test_lists(executor):
    prompt = graph(("Many", {"count": 3}), ("Add", {"a": ["1", 0], "b": 10}), ("Show", {"value": ["2", 0]}),
                   ("Gather", {"a": ["2", 0], "scale": 2}), ("Show", {"value": ["4", 0]}), ("Show", {"value": ["1", 1]}))
    result = executor.execute(prompt)
    assert result.ui == {"3": {"value": [10, 11, 12]}, "5": {"value": [66]}, "6": {"value": [3]}}


def test_nodes_run_in_inference_mode_with_this_host(executor):
    class Ask(Add):
        def go(self, a, b=100):
            assert get_host() is executor.host
            return (0,)

    executor.classes["Ask"] = Ask
    result = executor.execute(graph(("Grad", {"a": 1}), ("Show", {"value": ["1", 0]}), ("Ask", {"a": 1}),
                                    ("Show", {"value": ["3", 0]})))
    assert result.ui["2"] == {"value": [1]}
    assert not torch.is_inference_mode_enabled()


def test_errors_carry_the_node(executor):
    with pytest.raises(NodeExecutionError, match=r"node 2 \(Broken\)") as caught:
        executor.execute(graph(("Add", {"a": 1}), ("Broken", {"a": ["1", 0]}), ("Show", {"value": ["2", 0]})))
    info = caught.value.info
    assert (info["node_id"], info["node_type"], info["exception_type"]) == ("2", "Broken", "KeyError")
    assert info["exception_message"] == "'inside'\n" and info["executed"] == ["1"] and info["current_inputs"] == {"a": [101]}
    assert isinstance(caught.value.__cause__, KeyError)
    assert executor.events[-1] == ("execution_error", info)
    json.dumps(info)
    with pytest.raises(NodeExecutionError, match="expected a tuple of 1 outputs"):
        executor.execute(graph(("NotATuple", {"a": 1}), ("Show", {"value": ["1", 0]})))


def test_events_come_in_the_hosts_order(executor):
    executor.execute(graph(("Add", {"a": 1}), ("Show", {"value": ["1", 0]})))
    assert [event for event, _ in executor.events] == [
        "execution_start", "execution_cached", "executing", "executing", "executed", "execution_success"]
    assert executor.events[4][1]["output"] == {"value": [101]}


def test_interruption_stops_before_the_next_node_and_keeps_what_is_done(executor):
    class Press(Add):
        def go(self, a, b=100):
            get_host().interrupt()
            return (1,)

    executor.classes["Press"] = Press
    prompt = graph(("Press", {"a": 1}), ("Add", {"a": ["1", 0]}), ("Show", {"value": ["2", 0]}))
    with pytest.raises(InterruptProcessingException):
        executor.execute(prompt)
    assert executor.events[-1][0] == "execution_interrupted" and CALLS == []
    assert executor.execute(prompt).cached == ["1"]


def test_a_long_chain_needs_no_recursion(executor):
    nodes = [("Add", {"a": 0, "b": 1})] + [("Add", {"a": [str(i), 0], "b": 1}) for i in range(1, 2000)]
    result = executor.execute(graph(*nodes, ("Show", {"value": ["2000", 0]})))
    assert result.ui["2001"] == {"value": [2000]}


def test_all_classes_have_distinct_ids():
    assert {"FewStepUniPC", "SamplerCustom", "SaveImage"} <= set(all_classes())

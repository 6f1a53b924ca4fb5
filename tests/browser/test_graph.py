"""The graph as people use it, as ``graph.cjs`` meets it: search box, queue, save and reload, a picture dragged in, cancelling."""

import json

import fewstep
import pytest
from chrome import NEEDS, ROOT

pytestmark = NEEDS


@pytest.fixture
def graph(seen):
    """What the part "graph" of a sitting showed."""
    return {"vue": seen["vue"], **seen["graph"]}


def plain(prompt):
    """Node classes and inputs alone."""
    return {i: (node["class_type"], node["inputs"]) for i, node in prompt.items()}


@pytest.fixture(scope="module")
def twin():
    """The API form that the tests hold the template to."""
    return plain(json.loads((ROOT / "tests" / "data" / "workflows" / "inpainting.json").read_text("utf-8")))


def test_every_node_can_be_added_from_the_search_box(graph):
    assert graph["added"] == {i: i for i in fewstep.NODE_CLASS_MAPPINGS}


def test_solver_nodes_have_a_drawing_and_no_fresh_node_a_fault(graph):
    drawn = {i: fault for i, (fault, _) in ((i, d) for i, d in graph["drawings"].items() if d)}
    solvers = {i for i, node in fewstep.NODE_CLASS_MAPPINGS.items() if tuple(node.RETURN_TYPES) == ("SAMPLER",)}
    assert set(drawn) == solvers | {"FewStepKSampler", "FewStepPlanInspector", "FewStepFittedSolver"}
    assert not any(drawn.values()), {i: graph["drawings"][i] for i, fault in drawn.items() if fault}
    assert sum("evaluations" in graph["drawings"][i][1] for i in solvers) >= 10


def test_a_template_opens_and_queue_gives_its_pictures(graph, twin):
    assert plain(graph["prompt"]) == twin, "the frontend reads the drawing as we do"
    assert "execution_success" in graph["events"] and "execution_error" not in graph["events"]
    assert {"progress", "b_preview_with_metadata"} <= set(graph["events"])
    assert len(graph["files"]) == 8 and set(graph["pictures"]) == {64}
    assert len(graph["pictures"]) == 8 or graph["vue"], "the Vue nodes may show one picture of several"


def test_a_saved_graph_is_there_after_a_reload(graph, twin):
    assert graph["stored"] == len(twin) and plain(graph["reloaded"]) == twin


def test_a_picture_dragged_in_brings_its_graph_and_drawings(graph, twin):
    assert plain(graph["dropped"]) == twin and graph["redrawn"].startswith("unipc(")


def test_a_run_is_cancelled_from_the_page_and_the_next_one_succeeds(graph):
    assert "execution_interrupted" in graph["cancelled"] and "execution_success" not in graph["cancelled"]
    assert graph["idle"] == {"queue": 0, "running": None, "dialogs": []}
    assert "execution_success" in graph["again"]

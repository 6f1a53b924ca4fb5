"""The plans drawn in the nodes, in both renderers of the frontend and both themes, as ``plans.cjs`` meets them."""

import re

import pytest
from chrome import NEEDS
from wcag import contrast

pytestmark = NEEDS


@pytest.fixture
def plans(seen):
    """What the part "plans" of a sitting showed."""
    return {"vue": seen["vue"], **seen["plans"]}


def test_a_node_from_the_search_box_draws_its_plan_and_says_it_in_words(plans):
    assert bool(plans["vueNodes"]) == plans["vue"], "the renderer that was asked for"
    added = plans["added"]
    assert added["shown"] and added["svg"] == 2 and added["cells"] > 20
    assert added["facts"] == "8 steps, 8 evaluations, peak 6 latents" and "Assumed until it is known" in added["basis"]
    assert added["facts"] in added["label"] and added["title"].startswith("unipc(")
    assert re.match(r"Sigma by step: 14\.6, .*, 0\.0292, 0\. Lambda by step: -2\.68, .*∞\.$", added["desc"])
    assert "0.456939 X + 0.543061 M_0" in plans["table"], "the button, by keyboard, shows the table as text"


def test_a_changed_widget_changes_the_drawing(plans):
    assert plans["added"]["cells"] != plans["changed"]["cells"] and plans["pixelsBefore"] != plans["pixelsAfter"]
    assert "corrector=False" in plans["changed"]["title"]


def test_a_schedule_and_model_elsewhere_in_the_graph_are_followed(plans):
    assert plans["corrector"]["facts"].startswith("7 steps") and plans["fewer"]["facts"].startswith("5 steps, 5 evaluations")
    assert re.match(r"Drawn from the connected schedule \(node \d+\) and the demo model \(eps\)\.", plans["fewer"]["basis"])
    assert "execution_success" in plans["events"]


def test_nothing_of_it_is_saved(plans):
    assert plans["saved"] == plans["reloadedValues"] == [2, "bh2", "data", True, False, "", False]
    assert list(plans["exported"]) == [
        "order", "variant", "prediction", "lower_order_final", "corrector", "disable_corrector", "thresholding"]
    assert plans["reloaded"]["title"] == plans["changed"]["title"] and plans["reloaded"]["shown"]


def test_a_fault_stands_in_the_node_before_the_run_and_marks_this_node_after_it(plans):
    assert plans["faulty"]["error"] and "order is 6, expected an integer from 1 to 3" in plans["faulty"]["basis"]
    assert plans["error"]["node"] == plans["faultyNode"] and plans["error"]["text"].strip() == plans["faulty"]["basis"]
    assert plans["marked"] == [plans["faultyNode"]] and plans["faulty"]["basis"] in plans["said"]


def test_it_can_be_read_at_half_and_double_size_and_in_either_theme(plans):
    half, double = plans["zoom"]["0.5"], plans["zoom"]["2"]
    assert half["shown"] and double["shown"] and double["width"] == pytest.approx(4 * half["width"], rel=0.02)
    text, *lines = (contrast(colour, plans["added"]["ground"]) for colour in plans["added"]["colours"])
    assert text > 4.5 and len(lines) == 2 and min(lines) > 3

"""The plans drawn in the nodes, in both renderers of the frontend and both themes, as ``plans.cjs`` meets them."""

import os
import re
from pathlib import Path

import pytest
from chrome import FRONTENDS, NEEDS, OPTIONAL, ROOT, errors, serving, session

pytestmark = NEEDS
SHOTS = os.environ.get("FEWSTEP_SHOTS")  # a folder for pictures to look at


@pytest.fixture(scope="module", params=[(f, vue, theme) for f in FRONTENDS for vue, theme in ((False, "light"), (True, "dark"))],
                ids=lambda p: f"{'given' if p[0] else 'installed'}-{'vue' if p[1] else 'canvas'}-{p[2]}")
def seen(request, tmp_path_factory):
    """What one session in the browser showed."""
    frontend, vue, theme = request.param
    folder = tmp_path_factory.mktemp("plans")
    shots = str(Path(SHOTS) / f"{'given' if frontend else 'installed'}-{'vue' if vue else 'canvas'}-{theme}") if SHOTS else None
    with serving(ROOT, folder, frontend) as url:
        return {"vue": vue, **session("plans.cjs", folder, url=url, pack="fewstep", vue=vue, theme=theme, shots=shots)}


def test_a_node_from_the_search_box_draws_its_plan_and_says_it_in_words(seen):
    assert bool(seen["vueNodes"]) == seen["vue"], "the renderer that was asked for"
    added = seen["added"]
    assert added["shown"] and added["svg"] == 2 and added["cells"] > 20
    assert added["facts"] == "8 steps, 8 evaluations, peak 6 latents" and "Assumed until it is known" in added["basis"]
    assert added["facts"] in added["label"] and added["title"].startswith("unipc(")
    assert re.match(r"Sigma by step: 14\.6, .*, 0\.0292, 0\. Lambda by step: -2\.68, .*∞\.$", added["desc"])
    assert "0.456939 X + 0.543061 M_0" in seen["table"], "the button, by keyboard, shows the table as text"


def test_a_changed_widget_changes_the_drawing(seen):
    assert seen["added"]["cells"] != seen["changed"]["cells"] and seen["pixelsBefore"] != seen["pixelsAfter"]
    assert "corrector=False" in seen["changed"]["title"]


def test_a_schedule_and_model_elsewhere_in_the_graph_are_followed(seen):
    assert seen["corrector"]["facts"].startswith("7 steps") and seen["fewer"]["facts"].startswith("5 steps, 5 evaluations")
    assert re.match(r"Drawn from the connected schedule \(node \d+\) and the demo model \(eps\)\.", seen["fewer"]["basis"])
    assert "execution_success" in seen["events"]


def test_nothing_of_it_is_saved(seen):
    assert seen["saved"] == seen["reloadedValues"] == [2, "bh2", "data", True, False, "", False]
    assert list(seen["exported"]) == [
        "order", "variant", "prediction", "lower_order_final", "corrector", "disable_corrector", "thresholding"]
    assert seen["reloaded"]["title"] == seen["changed"]["title"] and seen["reloaded"]["shown"]


def test_a_fault_stands_in_the_node_before_and_after_the_run(seen):
    assert seen["faulty"]["error"] and "order is 6" in seen["faulty"]["basis"]
    assert seen["error"]["node"] == seen["faultyNode"] and seen["error"]["text"].strip() == seen["faulty"]["basis"]


def luminance(colour):
    """Of WCAG 2, from rgb(0..255) or color(srgb 0..1)."""
    numbers = [float(x) for x in re.findall(r"[\d.]+(?:e-?\d+)?", colour)][:3]
    if colour.startswith("rgb"):
        numbers = [x / 255 for x in numbers]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in numbers]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """Of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_can_be_read_at_half_and_double_size_and_in_either_theme(seen):
    half, double = seen["zoom"]["0.5"], seen["zoom"]["2"]
    assert half["shown"] and double["shown"] and double["width"] == pytest.approx(4 * half["width"], rel=0.02)
    text, *lines = (contrast(colour, seen["added"]["ground"]) for colour in seen["added"]["colours"])
    assert text > 4.5 and len(lines) == 2 and min(lines) > 3


def test_the_page_has_no_error(seen):
    terminal = re.compile("/internal/logs|Error fetching logs")  # a panel of the frontend that only ComfyUI can fill
    assert [entry for entry in errors(seen) if not terminal.search(str(entry))] == []
    assert all(OPTIONAL.search(path) or terminal.search(path) for _, path in seen["failed"]), seen["failed"]

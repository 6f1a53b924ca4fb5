"""Error estimates drawn while sampling, in both renderers, as ``estimates.cjs`` meets them."""

import os
import re

import pytest
from chrome import NEEDS, ROOT, errors, serving, session
from wcag import contrast

pytestmark = NEEDS
SHOTS = os.environ.get("FEWSTEP_SHOTS")


@pytest.mark.parametrize(("vue", "theme"), [(False, "light"), (True, "dark")], ids=["canvas-light", "vue-dark"])
def test_estimates_come_with_the_run_and_are_drawn_and_said(vue, theme, tmp_path):
    shots = SHOTS and os.path.join(SHOTS, f"{'vue' if vue else 'canvas'}-{theme}")
    with serving(ROOT, tmp_path) as url:
        seen = session("estimates.cjs", tmp_path, url=url, pack="fewstep", vue=vue, theme=theme, shots=shots)
    first, *_, last = seen["messages"]
    assert first["estimates"] == [] and not first["done"] and last["done"]
    steps = [step for step, _ in last["estimates"]]
    assert steps == sorted(steps) and len(steps) >= 4 and all(0 < value < 1 for _, value in last["estimates"])
    before, after, solver = seen["before"], seen["corrected"], seen["solver"]
    assert before["points"] == 0 and "estimates" not in before["words"]
    assert after["points"] == after["marks"] == len(steps) and after["inside"] and after["apart"]
    said = re.search(r"Error estimates of the last run: (.*)\.$", after["words"]).group(1)
    assert [int(word) - 1 for word in re.findall(r"step (\d+):", said)] == steps and said in after["text"]
    assert solver["points"] == 0, "only the node whose solver ran: this one has a corrector after it"
    assert contrast(after["stroke"], after["ground"]) > 3
    assert errors(seen) == []

"""The drawings in the nodes, in the real ComfyUI with the frontend that it brings."""

import json
import os

import pytest
from chrome import NEEDS, session

pytestmark = NEEDS[:2]


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_plans_are_drawn(server, tmp_path, vue):
    server.post("/settings/Comfy.TutorialCompleted", True)  # else the gallery of templates greets a new user
    shots = os.path.join(os.environ.get("FEWSTEP_SHOTS", str(tmp_path)), f"comfyui-{'vue' if vue else 'canvas'}")
    seen = session("plans.cjs", tmp_path, url=server.url, pack="few-step.pack", vue=vue, theme="dark", shots=shots)
    assert bool(seen["vueNodes"]) == vue and seen["added"]["shown"] and seen["added"]["facts"].startswith("8 steps, 8 evaluations")
    assert seen["pixelsBefore"] != seen["pixelsAfter"] and seen["saved"] == seen["reloadedValues"]
    assert seen["fewer"]["facts"].startswith("5 steps") and "demo model (eps)" in seen["fewer"]["basis"]
    assert "execution_success" in seen["events"]
    assert seen["error"]["node"] == seen["faultyNode"] and "order is 6" in seen["faulty"]["basis"]
    faults = [entry for entry in (*seen["errors"], *seen["console"]) if "few" in json.dumps(entry).lower()]
    assert faults == [], "none of the pack"

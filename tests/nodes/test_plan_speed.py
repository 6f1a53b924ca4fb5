"""Plans are drawn while someone types: 50 steps in under 50 ms, measured as processor time and with room for slow machines."""

import time

import pytest
from fewstep.nodes import NODE_CLASS_MAPPINGS as NODES
from fewstep.nodes.live_plan import live_plan

LIMIT = 0.1  # seconds; 0.045 at most on the machine where it was written
SAMPLERS = [kind for kind, node in NODES.items() if node.RETURN_TYPES == ("SAMPLER",)]
SOLVERS = [kind for kind in SAMPLERS if "sampler" not in NODES[kind].INPUT_TYPES()["required"]]
AFTER = {"FewStepUniC": "FewStepDPMSolverMultistep"}  # what a corrector is put on where it cannot be UniPC
NEEDS_A_RUN = {"FewStepFittedSolver", "FewStepTeleport"}  # a model's own calibration
CHOSEN = [
    ("FewStepUniPC", {"order": 3}), ("FewStepTimeShift", {"wiring": "target"}), ("FewStepTimeShift", {"wiring": "label"}),
    ("FewStepTimeShift", {"window": 200}),
]


def node(kind, **changes):
    values = {"sampler": ["4", 0]} if kind not in SOLVERS and kind in SAMPLERS else {}
    for name, (choices, *settings) in NODES[kind].INPUT_TYPES()["required"].items():
        default = settings[0].get("default", choices[0] if isinstance(choices, list) else None) if settings else None
        if default is not None:
            values[name] = default
    return {"class_type": kind, "inputs": {**values, **changes}}


@pytest.mark.parametrize(("kind", "changes"), [*((kind, {}) for kind in SAMPLERS if kind not in NEEDS_A_RUN), *CHOSEN], ids=str)
def test_fifty_steps_are_drawn_at_once(kind, changes, host):
    prompt = {
        "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": "eps"}},
        "4": node(AFTER.get(kind, "FewStepUniPC")), "5": node(kind, **changes),
        "6": node("FewStepSchedule", model=["1", 0], steps=50),
        "7": {"class_type": "SamplerCustom", "inputs": {"model": ["1", 0], "sampler": ["5", 0], "sigmas": ["6", 0]}},
    }
    taken = []
    for _ in range(6):
        start = time.process_time()
        plan = live_plan({"prompt": prompt, "node": "5"})
        taken.append(time.process_time() - start)
    assert plan.get("steps") == 50, plan
    assert min(taken) < LIMIT

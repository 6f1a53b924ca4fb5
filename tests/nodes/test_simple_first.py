"""Simple first: a sampling node shows four widgets of the pack's own at most; the rest is advanced, as the host says it."""

import pytest
from fewstep.nodes import NODE_CLASS_MAPPINGS as NODES

USUAL = {"seed", "steps", "cfg", "denoise"}  # as the host's KSampler has them
SAMPLING = sorted(kind for kind, node in NODES.items() if "SAMPLER" in node.RETURN_TYPES or kind == "FewStepKSampler")


@pytest.mark.parametrize("kind", SAMPLING)
def test_at_most_four_widgets_are_shown_at_first(kind):
    inputs = {name: spec for group in NODES[kind].INPUT_TYPES().values() for name, spec in group.items() if isinstance(spec, tuple)}
    settings = {
        name: spec[1] if len(spec) > 1 else {} for name, spec in inputs.items()
        if isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN")
    }
    assert all(s.get("advanced", True) is True for s in settings.values()), "the frontend reads a plain true"
    shown = [name for name, s in settings.items() if not s.get("advanced") and name not in USUAL]
    assert len(shown) <= 4, shown

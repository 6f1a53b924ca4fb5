"""The embedded host's stock nodes have the ids, inputs, widgets and sockets of ComfyUI's."""

import pytest
from fewstep.host.executor import all_classes
from fewstep.nodes import NODE_CLASS_MAPPINGS

STOCK = sorted(set(all_classes()) - set(NODE_CLASS_MAPPINGS))
SETTINGS = ("default", "min", "max", "step", "round", "control_after_generate", "multiline", "dynamicPrompts")


def widget(spec):
    """(type, settings that decide about values, choices) of either way to describe an input."""
    kind, settings = spec[0], spec[1] if len(spec) > 1 else {}
    choices = kind if isinstance(kind, list) else settings.get("options")
    told = {name: settings[name] for name in SETTINGS if settings.get(name) not in (None, False)}
    if choices is not None:
        told.pop("default", None)  # a combo's default is its first choice in one of the two ways
    return "COMBO" if choices is not None else kind, told, choices


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_node(server, embedded, name):
    theirs, ours = (host.json(f"/object_info/{name}")[name] for host in (server, embedded))
    for fact in ("output", "output_name", "output_is_list", "output_node", "name", "category"):
        assert ours[fact] == theirs[fact], fact
    assert ours["display_name"] == (theirs["display_name"] or name)
    assert ours["input_order"].get("required", []) == theirs["input_order"].get("required", [])
    for group, inputs in ours["input"].items():
        if group == "hidden":
            continue
        for label, spec in inputs.items():
            (kind, told, choices), (their_kind, their_told, their_choices) = widget(spec), widget(theirs["input"][group][label])
            assert (kind, told) == (their_kind, their_told), label
            if label not in ("ckpt_name", "unet_name", "clip_name", "vae_name"):
                assert set(choices or ()) <= set(their_choices or ()), label

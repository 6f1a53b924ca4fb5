"""The pack in a real ComfyUI beside other packs, and what loading it costs."""

import pytest


def test_a_neighbour_with_the_same_folders_keeps_its_own(numbers):
    found = numbers("loading.neighbours")
    assert found["host_nodes"], "import nodes is still ComfyUI's"
    assert found["path"] and not found["top_level"], "nothing on sys.path, no module of ours at the top level"
    assert found["others"] == [True, True] and found["ours"]
    assert found["finite"] and found["nodes"] >= 20


@pytest.mark.parametrize("check", ["loading.in_host", "loading.alone"])
def test_loading_is_quick_and_light(numbers, check):
    found = numbers(check)
    assert set(found["new"]) <= {"numpy", "safetensors", "einops"}, "no other package is imported"
    assert found["seconds"] < 0.5 and found["nodes"] >= 22

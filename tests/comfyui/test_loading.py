"""What the pack adds to a real ComfyUI, and what loading it costs."""

import pytest


def test_the_stock_lists_gain_entries_once_and_keep_theirs(numbers):
    found = numbers("loading.stock_lists")
    for now, before in (("samplers", "samplers_before"), ("schedulers", "schedulers_before")):
        ours = [name for name in found[now] if name.startswith("fewstep_")]
        assert ours and len(ours) == len(set(ours))
        assert [name for name in found[now] if not name.startswith("fewstep_")] == found[before]
        assert found[now][-len(ours):] == ours, "after the host's own"
    assert set(found["ksampler_names"]) >= {name for name in found["samplers"] if name.startswith("fewstep_")}
    assert found["unchanged"] and min(found["copies"]) > 0


def test_the_stock_ksampler_runs_them(numbers):
    runs = numbers("loading.stock_lists")["runs"]
    assert "eps fewstep_unipc fewstep_uniform_lambda 6" in runs and len(runs) == 3 * 4 * 3 * 3
    assert all(runs.values()), [name for name, good in runs.items() if not good]


def test_a_neighbour_with_the_same_folders_keeps_its_own(numbers):
    found = numbers("loading.neighbours")
    assert found["host_nodes"], "import nodes is still ComfyUI's"
    assert found["path"] and not found["top_level"], "nothing on sys.path, no module of ours at the top level"
    assert found["others"] == [True, True] and found["ours"]
    assert found["finite"] and found["nodes"] >= 20


@pytest.mark.parametrize("check", ["loading.in_host", "loading.alone"])
def test_loading_is_quick_and_light(numbers, check):
    found = numbers(check)
    assert found["seconds"] < 0.5 and found["heavy"] == [] and found["nodes"] >= 20

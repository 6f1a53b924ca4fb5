"""FewStep's entries in the stock KSampler's lists."""


def test_entries_are_added_once_and_others_stay(numbers):
    found = numbers("lists.additions")
    for kind, before in found["before"].items():
        after = found["after"][kind]
        ours = after[len(before):]
        assert after[: len(before)] == before and "early" in before, "another pack's entry stays where it was"
        assert ours and all(name.startswith("fewstep_") for name in ours) and len(set(after)) == len(after)
        assert found["again"][kind] == [*after, "late"], "a second copy adds nothing and removes nothing"
    assert found["changed"] == [], "every other name still stands for the same function"
    assert min(found["nodes"]) >= 22


def test_they_can_be_switched_off(numbers):
    found = numbers("lists.switched_off")
    assert found["same"] and found["nodes"] >= 22


def test_the_stock_ksampler_runs_them(numbers):
    runs = numbers("lists.runs")
    assert "eps fewstep_unipc fewstep_uniform_lambda 6" in runs and len(runs) == 3 * 5 * 3 * 3
    assert all(runs.values()), [name for name, good in runs.items() if not good]

"""Stochastic solvers in a real ComfyUI: a sample's noise does not depend on its batch, nor on where a schedule is cut."""


def test_a_sample_is_the_same_in_any_batch(numbers):
    found = numbers("noise.batches")
    assert len(found) == 3 * 5
    for name, run in found.items():
        assert run["again"] and run["same"] <= 1e-4, name
        assert run["twins"] > 0.1, f"{name}: with the same start noise, samples still have their own noise on the way"


def test_a_schedule_in_parts_draws_the_noise_of_the_whole(numbers):
    found = numbers("noise.parts")
    assert len(found) == 3 * 5
    for name, run in found.items():
        if run["one step"]:
            assert run["few"] <= 1e-4 and run["many"] <= 1e-4, name
        else:  # the second part starts without a past, at first order: the runs meet as the steps shrink
            assert run["many"] < min(0.3 * run["few"], 0.03), name

"""The Teleport node in a real ComfyUI's own process: before its samplers, with masks, video and sound."""

import pytest


@pytest.fixture(scope="module")
def found(numbers):
    return numbers("teleport.jumps")


def test_stock_samplers_go_on_after_the_jump(found):
    assert len(found["stock"]) == 22
    for name, run in found["stock"].items():
        assert run["finite"] and run["same"] and run["rising"], name
        adaptive = name.endswith(("dpm_adaptive", "dpm_fast"))
        assert run["first"] == 0 and (adaptive or run["last"] == [7, 8]), (name, run)


def test_a_wrapped_euler_is_fewsteps_own(found):
    assert all(value < 2e-4 for name, value in found["ours"].items() if "mask" not in name), found["ours"]


def test_masks_video_and_sound(found):
    assert all(value < 1e-5 for name, value in found["ours"].items() if "mask" in name), found["ours"]
    assert found["video"] == [[1, 16, 3, 8, 8], True] and found["audio"]
    assert found["packed"].startswith("CalibrationError") and "packed into one row" in found["packed"]


def test_the_picture_stays_that_of_the_noise(found):
    """Deterministic samplers, with two or three evaluations fewer: the jump adds no more than its tolerance, 0.02 sigma/alpha."""
    for name, run in found["stock"].items():
        rho = found["range"][name.split()[0]]["anchored"]
        assert 2 < rho < 15
        assert run["stochastic"] or run["error"] < 1.2 * run["plain"] + 0.02 * rho, (name, run)

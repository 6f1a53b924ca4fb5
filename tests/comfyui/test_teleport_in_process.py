"""The Teleport node in a real ComfyUI's own process; see ``test_in_process.py`` for what it needs."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set: it names a ComfyUI checkout to test the pack in"
)


@functools.cache
def numbers():
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(Path(__file__).with_name("in_process_teleport.py"))]
    done = subprocess.run(command, cwd=os.environ["COMFYUI_PATH"], capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_stock_samplers_go_on_after_the_jump():
    found = numbers()["stock"]
    assert len(found) == 22
    for name, run in found.items():
        assert run["finite"] and run["same"] and run["rising"], name
        adaptive = name.endswith(("dpm_adaptive", "dpm_fast"))
        assert run["first"] == 0 and (adaptive or run["last"] == [7, 8]), (name, run)


def test_a_wrapped_euler_is_fewsteps_own():
    assert all(value < 2e-4 for name, value in numbers()["ours"].items() if "mask" not in name), numbers()["ours"]


def test_masks_video_and_sound():
    found = numbers()
    assert all(value < 1e-5 for name, value in found["ours"].items() if "mask" in name), found["ours"]
    assert found["video"] == [[1, 16, 3, 8, 8], True] and found["audio"]


def test_the_picture_stays_that_of_the_noise():
    """Deterministic samplers, with two or three evaluations fewer: the jump adds no more than its tolerance, 0.02 sigma/alpha."""
    for name, run in numbers()["stock"].items():
        rho = numbers()["range"][name.split()[0]]["anchored"]
        assert 2 < rho < 15
        assert run["stochastic"] or run["error"] < 1.2 * run["plain"] + 0.02 * rho, (name, run)

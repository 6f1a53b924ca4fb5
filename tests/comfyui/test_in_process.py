"""The pack in a real ComfyUI's own process, by numbers: parity with the stock samplers, model families, masks, slices, lists,
loading. Needs COMFYUI_PATH (a checkout); COMFYUI_PYTHON names the Python that has ComfyUI's packages, if it is another one.
"""

import functools
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set: it names a ComfyUI checkout to test the pack in"
)

FORMS = ("eps", "v", "flow")


@functools.cache
def numbers(check):
    """What ``in_process.py`` found."""
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(Path(__file__).with_name("in_process.py")), check]
    done = subprocess.run(command, cwd=os.environ["COMFYUI_PATH"], capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def over(values, limit):
    return {name: value for name, value in values.items() if not value <= limit}


# a. parity
def parity(stock):
    return {name: value for name, value in numbers("parity").items() if name.endswith(f" {stock}")}


def test_ddim_is_the_stock_euler_on_every_family():
    found = parity("euler")
    assert len(found) == 12 and not over(found, 1e-4)


def test_multistep_is_the_stock_dpmpp_2m_on_noise_and_v_models():
    found = parity("dpmpp_2m")
    assert len(found) == 8 and not over(found, 1e-4)


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
def test_unipc_is_the_stock_one_where_that_one_is_right(name):
    """Noise and v models, sigmas that do not end in 0."""
    found = parity(name)
    assert len(found) == 8 and not over(found, 1e-4)


# b. families
UNIT_DISCRETE = ("sd15", "sdxl", "sd15 v", "sd15 eps zsnr", "sd15 v zsnr", "sd15 lcm", "sd15 x0")
CONTINUOUS = (
    "audio", "sd15 continuous v_prediction", "sd15 continuous edm", "sd15 continuous edm_playground_v2.5",
    "sd15 continuous eps", "sd15 continuous cosmos_rflow", "sd15 continuous_v", "sd15 cascade",
)
FLOW = ("flux", "wan", "flux sd3", "flux auraflow", "flux flux")
FAMILIES = UNIT_DISCRETE + CONTINUOUS + FLOW
SHAPES = {"flux": [2, 16, 8, 8], "wan": [1, 16, 3, 8, 8], "audio": [2, 64, 40]}


def test_every_family_is_looked_at():
    assert set(numbers("families")) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_samples(name):
    found = numbers("families")[name]
    shape = SHAPES.get(name.split()[0], [2, 4, 8, 8])
    assert found["shape"] == shape and len(found["solvers"]) >= 2
    for node, run in found["solvers"].items():
        assert run["finite"] and run["shape"] == shape, node
        assert run["seen"] == [shape], f"{node}: the callback's denoised has the latent's shape"
        steps = run["steps"]
        assert steps == sorted(steps) and steps[-1] == 5 and run["totals"] == [6], node
        if node in ("FewStepDDIM", "FewStepDPMSolverMultistep", "FewStepUniPC", "FewStepDEIS", "FewStepIPNDM"):
            assert steps == list(range(6)), f"{node}: one call in every step"
    assert found["euler"] <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_frame(name):
    found = numbers("families")[name]
    expected = ("flow", "FlowTime") if name in FLOW else ("unit", "DiscreteTime" if name in UNIT_DISCRETE else "TabulatedTime")
    assert (found["scaling"], found["time"]) == expected
    if name in UNIT_DISCRETE:
        assert found["time_error"] <= 1e-6, "t = (i+1)/N is entry i of the model's own table"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_schedule_of_a_family(name):
    found = numbers("families")[name]
    assert len(found["schedules"]) == 8
    for kind, sigmas in found["schedules"].items():
        assert len(sigmas) == 7 and sigmas[-1] == 0, kind
        assert all(math.isfinite(a) and a > b for a, b in itertools.pairwise(sigmas)), (kind, sigmas)
        assert sigmas[0] <= found["sigma_max"], kind
        if kind != "edm_rho":  # the host scales the start noise fully only at its own sigma_max
            # lambda is infinite at a flow model's pure noise, so that grid starts just below it
            start = 0.999 if kind == "uniform_lambda" and name in FLOW else found["sigma_max"]
            assert math.isclose(sigmas[0], start, rel_tol=1e-5), (kind, sigmas)


@pytest.mark.parametrize("name", FAMILIES)
def test_uniform_time_is_uniform_in_the_time_the_network_sees(name):
    times = numbers("families")[name]["network_times"]
    widths = [a - b for a, b in itertools.pairwise(times)]
    assert max(widths) <= 1.1 * min(widths), times


def test_nested_latents_are_sampled_packed():
    found = dict(numbers("nested"))
    packed, euler = found.pop("packed"), found.pop("euler")
    assert euler <= 1e-4 and len(found) == 9
    for node, run in found.items():
        assert run == {"shapes": [[2, 4, 3, 4, 4], [2, 2, 30]], "seen": [packed], "finite": True}, node


# c. given latents
@pytest.mark.parametrize("form", FORMS)
def test_a_mask_keeps_the_rest(form):
    found = {name: run for name, run in numbers("given_latents")["mask"].items() if name.startswith(f"{form} ")}
    assert len(found) == 9
    for name, run in found.items():
        assert run["kept"] <= 1e-5 and run["changed"] > 0.05, name


@pytest.mark.parametrize("form", FORMS)
def test_img2img(form):
    run = numbers("given_latents")["img2img"][form]
    assert run["finite"] and run["steps"] == 6 and run["tail"], "the last 6 of 12 steps"
    assert run["euler"] <= 1e-4
    assert 0.01 < run["near"] < 0.75 * run["far"], "half the noise keeps the picture near"


@pytest.mark.parametrize("form", FORMS)
def test_two_slices_are_the_whole_run(form):
    found = numbers("given_latents")["slices"]
    assert found[form] <= 1e-4
    others = {name: good for name, good in found.items() if name.startswith(f"{form} ")}
    assert len(others) == 9 and all(others.values()), others


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_its_samples(form):
    found = {name: value for name, value in numbers("given_latents")["batch"].items() if name.startswith(f"{form} ")}
    assert len(found) == 5 and not over(found, 1e-4)


# d. the stock lists
def test_the_stock_lists_gain_entries_once_and_keep_theirs():
    found = numbers("stock_lists")
    for now, before in (("samplers", "samplers_before"), ("schedulers", "schedulers_before")):
        ours = [name for name in found[now] if name.startswith("fewstep_")]
        assert ours and len(ours) == len(set(ours))
        assert [name for name in found[now] if not name.startswith("fewstep_")] == found[before]
        assert found[now][-len(ours):] == ours, "after the host's own"
    assert set(found["ksampler_names"]) >= {name for name in found["samplers"] if name.startswith("fewstep_")}
    assert found["unchanged"] and min(found["copies"]) > 0


def test_the_stock_ksampler_runs_them():
    runs = numbers("stock_lists")["runs"]
    assert "eps fewstep_unipc fewstep_uniform_lambda 6" in runs and len(runs) == 3 * 4 * 3 * 3
    assert all(runs.values()), [name for name, good in runs.items() if not good]


# e. loading
def test_a_neighbour_with_the_same_folders_keeps_its_own():
    found = numbers("neighbours")
    assert found["host_nodes"], "import nodes is still ComfyUI's"
    assert found["path"] and not found["top_level"], "nothing on sys.path, no module of ours at the top level"
    assert found["others"] == [True, True] and found["ours"]
    assert found["finite"] and found["nodes"] >= 20


@pytest.mark.parametrize("check", ["load_in_host", "load_alone"])
def test_loading_is_quick_and_light(check):
    found = numbers(check)
    assert found["seconds"] < 0.5 and found["heavy"] == [] and found["nodes"] >= 20

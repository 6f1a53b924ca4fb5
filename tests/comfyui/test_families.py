"""Model families in a real ComfyUI's own process: frames, schedules, shapes, solvers."""

import itertools
import math

import pytest

UNIT_DISCRETE = ("sd15", "sdxl", "sd15 v", "sd15 eps zsnr", "sd15 v zsnr", "sd15 lcm", "sd15 x0")
CONTINUOUS = (
    "audio", "sd15 continuous v_prediction", "sd15 continuous edm", "sd15 continuous edm_playground_v2.5",
    "sd15 continuous eps", "sd15 continuous cosmos_rflow", "sd15 continuous_v", "sd15 cascade",
)
FLOW = ("flux", "wan", "flux sd3", "flux auraflow", "flux flux")
FAMILIES = UNIT_DISCRETE + CONTINUOUS + FLOW
SHAPES = {"flux": [2, 16, 8, 8], "wan": [1, 16, 3, 8, 8], "audio": [2, 64, 40]}


def test_every_family_is_looked_at(numbers):
    assert set(numbers("families.families")) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_samples(numbers, name):
    found = numbers("families.families")[name]
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
def test_a_familys_frame(numbers, name):
    found = numbers("families.families")[name]
    expected = ("flow", "FlowTime") if name in FLOW else ("unit", "DiscreteTime" if name in UNIT_DISCRETE else "TabulatedTime")
    assert (found["scaling"], found["time"]) == expected
    if name in UNIT_DISCRETE:
        assert found["time_error"] <= 1e-6, "t = (i+1)/N is entry i of the model's own table"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_schedule_of_a_family(numbers, name):
    found = numbers("families.families")[name]
    assert len(found["schedules"]) == 10
    for kind, sigmas in found["schedules"].items():
        assert len(sigmas) == 7 and sigmas[-1] == 0, kind
        assert all(math.isfinite(a) and a > b for a, b in itertools.pairwise(sigmas)), (kind, sigmas)
        assert sigmas[0] <= found["sigma_max"], kind
        if kind != "edm_rho":  # the host scales the start noise fully only at its own sigma_max
            # lambda is infinite at a flow model's pure noise, so that grid starts just below it
            start = 0.999 if kind == "uniform_lambda" and name in FLOW else found["sigma_max"]
            if kind == "trailing" and name in FLOW:  # 0.999 before the model's own shift
                assert 0.9989 < sigmas[0] < 1, sigmas
                continue
            assert math.isclose(sigmas[0], start, rel_tol=1e-5), (kind, sigmas)


@pytest.mark.parametrize("name", FAMILIES)
def test_uniform_time_is_uniform_in_the_time_the_network_sees(numbers, name):
    times = numbers("families.families")[name]["network_times"]
    widths = [a - b for a, b in itertools.pairwise(times)]
    assert max(widths) <= 1.1 * min(widths), times


def test_nested_latents_are_sampled_packed(numbers):
    found = dict(numbers("families.nested"))
    packed, euler = found.pop("packed"), found.pop("euler")
    assert euler <= 1e-4 and len(found) == 10
    for node, run in found.items():
        assert run == {"shapes": [[2, 4, 3, 4, 4], [2, 2, 30]], "seen": [packed], "finite": True}, node

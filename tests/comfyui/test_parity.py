"""The pack's solvers in a real ComfyUI against its stock samplers of the same method: the same to 1e-4."""

import pytest


def over(values, limit):
    return {name: value for name, value in values.items() if not value <= limit}


def parity(numbers, stock):
    found = numbers("parity.parity").items()
    return {name: value for name, value in found if name.endswith(f" {stock}") and (" clocked " in f" {stock}") == ("clocked" in name)}


def test_ddim_is_the_stock_euler_on_every_family(numbers):
    found = parity(numbers, "euler")
    assert len(found) == 18 and not over(found, 1e-4)


@pytest.mark.parametrize("name", ["dpmpp_2m", "gradient_estimation", "deis"])
def test_the_stock_methods_of_noise_and_v_models(numbers, name):
    found = parity(numbers, name)
    assert len(found) == 12 and not over(found, 1e-4)


@pytest.mark.parametrize("name", ["dpmpp_2m", "ipndm", "gradient_estimation", "deis"])
def test_the_sigma_clock_makes_the_stock_methods_of_flow_models(numbers, name):
    found = parity(numbers, f"clocked {name}")
    assert len(found) == 6 and not over(found, 1e-4)


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
def test_unipc_is_the_stock_one_where_that_one_is_right(numbers, name):
    """Noise and v models, sigmas that do not end in 0: zero's without it, and those that stop."""
    found = parity(numbers, name)
    assert len(found) == 12 and not over(found, 1e-4)


def test_beta_steps_are_those_of_the_hosts_own_node(numbers):
    """In model times of a thousand; it rounds them to whole ones."""
    found = numbers("parity.beta_schedules")
    assert len(found) == 6
    for name, pair in found.items():
        ours, theirs = pair["times"]
        assert pair["ends"] == [0.0, 0.0] and len(ours) == len(theirs) == 8, name
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 0.51, name

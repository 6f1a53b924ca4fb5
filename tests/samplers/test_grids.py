"""Grids against formulas written out here, both ends, and what is refused."""

import math

import numpy as np
import pytest
import torch
from fewstep.samplers import frames, grids
from fewstep.samplers.errors import OptionError, ScheduleError
from scipy import stats

VP, FLOW, EDM = frames.linear_vp(), frames.flow(), frames.edm()
AC = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SD = frames.discrete_vp(AC)


@pytest.mark.parametrize("name", grids.GRIDS)
@pytest.mark.parametrize("end", ["stop", "zero"])
@pytest.mark.parametrize("frame", [VP, FLOW, EDM, SD, SD.unit_alpha(), frames.cosine_vp()], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_every_grid_has_its_steps_and_its_end(name, end, frame, steps):
    if name == "shifted" and frame.time.t_max != 1.0:
        pytest.skip("a shift needs a time from 0 to 1")
    more = {"sigma_max": 0.98} if name == "edm_rho" and frame.scaling == "flow" else {}
    if name == "edm_rho" and frame.time is SD.time:
        more = {"sigma_max": 14.0, "sigma_min": 0.03}
    grid = grids.GRIDS[name](frame, steps, end=end, **more)
    assert grid.steps == steps and grid.end == end
    assert (grid.sigma[-1] == 0) == (end == "zero")
    assert np.all(np.diff(grid.lambda_) > 0)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(np.log(grid.alpha) - np.log(grid.sigma), grid.lambda_, atol=1e-9)
    if end == "stop" and not more and name != "edm_rho":
        lowest = grids.GRIDS["shifted"](frame, 1, end="stop").t[-1] if name == "shifted" else frame.time.t_0
        assert frame.sigma(lowest) == pytest.approx(grid.sigma[-1], rel=1e-9)


def test_formulas():
    def t(grid):
        return grid.t[np.isfinite(grid.t)]

    np.testing.assert_allclose(t(grids.uniform_t(VP, 4, end="stop")), np.linspace(1, 1e-3, 5), rtol=1e-14)
    np.testing.assert_allclose(t(grids.uniform_t(VP, 4, end="zero")), np.linspace(1, 1e-3, 4), rtol=1e-14)
    np.testing.assert_allclose(t(grids.quadratic_t(VP, 4, end="stop")), np.linspace(1, 1e-3**0.5, 5) ** 2, rtol=1e-13)
    lam = grids.uniform_lambda(VP, 7, end="stop").lambda_
    np.testing.assert_allclose(np.diff(lam), np.diff(lam)[0], rtol=1e-12)
    i = np.arange(6) / 5
    karras = (14.6 ** (1 / 7) + i * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grids.karras(EDM, 6, end="zero", t_T=14.6, t_0=0.03).sigma[:-1], karras, rtol=1e-12)
    np.testing.assert_allclose(grids.edm_rho(EDM, 5, end="stop", sigma_max=14.6, sigma_min=0.03).sigma, karras, rtol=1e-12)
    np.testing.assert_allclose(
        grids.exponential(EDM, 5, end="stop", t_T=14.6, t_0=0.03).sigma, np.geomspace(14.6, 0.03, 6), rtol=1e-12)
    u = np.linspace(1, 1e-3, 5)
    np.testing.assert_allclose(grids.shifted(FLOW, 4, end="stop").sigma, 3 * u / (1 + 2 * u), rtol=1e-13)
    u = 0.999 * np.linspace(1, 0, 5)  # the sigmas of diffusers' UniPCMultistepScheduler with use_flow_sigmas
    np.testing.assert_allclose(grids.trailing(FLOW, 4, end="zero").sigma, u, rtol=1e-13)
    np.testing.assert_allclose(grids.trailing(FLOW, 4, end="zero", shift=3.0).sigma, 3 * u / (1 + 2 * u), rtol=1e-13)
    np.testing.assert_allclose(t(grids.trailing(SD, 4, end="zero")), [1, 0.75, 0.5, 0.25], rtol=1e-14)
    np.testing.assert_allclose(t(grids.trailing(VP, 4, end="stop")), np.linspace(1, 1e-3, 5), rtol=1e-14)
    low, high = np.arctan(0.03), np.arctan(14.6)
    np.testing.assert_allclose(
        grids.kl_optimal(EDM, 6, end="zero", t_T=14.6, t_0=0.03).sigma[:-1], np.tan(np.linspace(high, low, 6)), rtol=1e-12)
    quantiles = stats.beta.ppf(1 - np.arange(8) / 8, 0.6, 0.6)
    np.testing.assert_allclose(t(grids.beta(FLOW, 8, end="zero", t_0=1e-9)), quantiles, rtol=1e-7)


def test_deis_time_phase_works_in_the_discrete_index():
    frame = frames.discrete_vp(AC, interpolation="alpha_squared")
    grid = grids.deis_grid(frame, 5, phase="t", power=2.0)
    np.testing.assert_allclose(grid.t * 1000 - 1, np.linspace(999**0.5, 0, 6) ** 2, atol=1e-9)
    log = grids.deis_grid(VP, 5, phase="log")
    np.testing.assert_allclose(np.diff(log.lambda_), np.diff(log.lambda_)[0], rtol=1e-10)


def test_host_sigmas_stay_as_given():
    sigmas = torch.tensor([14.614641, 5.3, 1.02, 0.0], dtype=torch.float32)
    grid = grids.from_sigmas(EDM, sigmas)
    assert grid.end == "zero" and np.array_equal(grid.sigma, sigmas.double().numpy())
    grid = grids.from_sigmas(FLOW, [1.0, 0.5, 0.2])
    assert grid.end == "stop" and grid.alpha.tolist() == [0.0, 0.5, 0.8] and grid.lambda_[0] == -math.inf
    assert grid.node(0).rho == math.inf and grid.node(1).rho == 1.0


def test_uniform_lambda_starts_a_flow_frame_just_below_pure_noise():
    assert grids.uniform_lambda(FLOW, 3, end="zero").sigma[0] == pytest.approx(0.999)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: grids.from_sigmas(EDM, [1.0, 2.0, 0.0]), "does not fall at step 0"),
    (lambda: grids.from_sigmas(EDM, [2.0, 1.0, 1.0]), "repeats at step 1"),
    (lambda: grids.from_sigmas(EDM, [2.0, float("nan"), 0.0]), r"sigma\[1\] is not a finite"),
    (lambda: grids.from_sigmas(EDM, [float("inf"), 1.0]), r"sigma\[0\] is not a finite"),
    (lambda: grids.from_sigmas(EDM, [2.0, 0.0, 0.0]), r"sigma\[1\] is 0"),
    (lambda: grids.from_sigmas(EDM, [2.0]), "at least 2 sigmas"),
    (lambda: grids.from_sigmas(EDM, [[2.0, 1.0]]), "one dimension"),
    (lambda: grids.from_sigmas(EDM, "many"), "list of numbers"),
    (lambda: grids.from_sigmas(EDM, [2.0, -1.0]), "outside 0"),
    (lambda: grids.from_sigmas(FLOW, [14.6, 1.0, 0.0]), "range of a flow frame"),
    (lambda: grids.uniform_t(VP, 5, end="stop", t_0=0.0), "use end='zero'"),
    (lambda: grids.uniform_t(VP, 5, end="stop", t_T=2.0), "expected 0 < t_0 < t_T"),
    (lambda: grids.shifted(EDM, 5, end="stop"), "time from 0 to 1"),
])
def test_bad_schedules_are_named(make, words):
    with pytest.raises(ScheduleError, match=words):
        make()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: grids.uniform_t(VP, 0, end="stop"), "steps is 0"),
    (lambda: grids.uniform_t(VP, 2.5, end="stop"), "steps is 2.5"),
    (lambda: grids.uniform_t(VP, 5, end="nil"), "end is 'nil'"),
    (lambda: grids.power_t(VP, 5, end="stop", power=-1.0), "power is -1"),
    (lambda: grids.deis_grid(VP, 5, phase="tt"), "phase is 'tt'"),
    (lambda: grids.shifted(FLOW, 5, end="stop", shift=0.0), "shift is 0"),
    (lambda: grids.beta(FLOW, 5, end="stop", a=0.0), "parameters are 0 and 0.6"),
    (lambda: grids.beta(FLOW, 20, end="zero", a=0.05, b=0.05), "20 beta steps .* repeat noise levels"),
])
def test_bad_options_are_named(make, words):
    with pytest.raises(OptionError, match=words):
        make()


def test_the_end_must_be_said():
    with pytest.raises(TypeError, match="end"):
        grids.uniform_t(VP, 5)

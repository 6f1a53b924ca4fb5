"""Frames against their papers' formulas, and round trips on the whole range, ends included."""

import math

import numpy as np
import pytest
import torch
from fewstep.samplers import frames
from fewstep.samplers.errors import OptionError, ScheduleError
from fewstep.samplers.predictions import KINDS, change_frame, denoiser_of, from_x_0, to_x_0
from fewstep.samplers.time_tables import TabulatedTime

AC = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
ALL = {
    "linear": frames.linear_vp(), "cosine": frames.cosine_vp(), "cosine_raw": frames.cosine_vp(normalized=False),
    "flow": frames.flow(), "edm": frames.edm(), "sd": frames.discrete_vp(AC), "sd_unit": frames.discrete_vp(AC).unit_alpha(),
    "sd_alpha2": frames.discrete_vp(AC, interpolation="alpha_squared"),
    "table": frames.Frame("unit", TabulatedTime.from_points(
        np.arctan(np.geomspace(0.03, 500.0, 1001)), -np.log(np.geomspace(0.03, 500.0, 1001)))),
}


def times(frame):
    top = min(frame.time.t_max, 1000.0)
    low = frame.time.t_min
    return np.concatenate([[low, top], low + (top - low) * np.linspace(0.0005, 0.9995, 997), low + np.logspace(-12, -4, 9)])


@pytest.mark.parametrize("name", ALL)
def test_time_round_trips_through_lambda_sigma_and_alpha(name):
    frame = ALL[name]
    t = times(frame)
    with np.errstate(divide="ignore"):
        assert np.abs(frame.t_of_lambda(frame.lambda_(t)) - t).max() < 1e-10 * max(1.0, t.max())
    assert np.abs(frame.t_of_sigma(frame.sigma(t)) - t).max() < 1e-10 * max(1.0, t.max())
    if frame.scaling != "unit":
        assert np.abs(frame.t_of_alpha(frame.alpha(t)) - t).max() < 1e-10
    else:
        with pytest.raises(ScheduleError, match="alpha is 1"):
            frame.t_of_alpha(0.5)


@pytest.mark.parametrize("name", ALL)
def test_lambda_is_the_log_ratio_and_falls(name):
    frame = ALL[name]
    t = np.sort(times(frame))[3:-1]
    alpha, sigma = frame.alpha(t), frame.sigma(t)
    np.testing.assert_allclose(np.log(alpha / sigma), frame.lambda_(t), rtol=1e-12, atol=1e-12)
    assert np.all(np.diff(frame.lambda_(t)) < 0)
    total = {"vp": alpha**2 + sigma**2, "flow": alpha + sigma, "unit": alpha}[frame.scaling]
    np.testing.assert_allclose(total, 1.0, rtol=1e-14)


def test_ends_are_exact():
    for name in ("linear", "cosine", "flow", "edm"):
        frame = ALL[name]
        assert (frame.alpha(0.0), frame.sigma(0.0), frame.lambda_(0.0)) == (1.0, 0.0, math.inf)
        assert frame.t_of_lambda(math.inf) == frame.t_of_sigma(0.0) == 0.0
    flow = ALL["flow"]
    assert (flow.alpha(1.0), flow.sigma(1.0), flow.lambda_(1.0)) == (0.0, 1.0, -math.inf)
    assert flow.t_of_lambda(-math.inf) == flow.t_of_sigma(1.0) == flow.t_of_alpha(0.0) == 1.0


def test_values_against_the_papers_formulas():
    t = 0.37
    assert frames.linear_vp(0.1, 20.0).alpha(t) == pytest.approx(math.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2), rel=1e-14)
    angle = (t + 0.008) / 1.008 * math.pi / 2
    assert ALL["cosine"].alpha(t) == pytest.approx(math.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2), rel=1e-14)
    assert ALL["cosine_raw"].alpha(t) == pytest.approx(math.cos(angle), rel=1e-14)
    sd = ALL["sd"]
    assert sd.alpha(500 / 1000) == pytest.approx(math.sqrt(AC[499]), rel=1e-14)
    middle = math.sqrt(math.sqrt(AC[499]) * math.sqrt(AC[500]))  # halfway in log alpha
    assert sd.alpha(500.5 / 1000) == pytest.approx(middle, rel=1e-13)
    assert ALL["sd_alpha2"].alpha(500.5 / 1000) ** 2 == pytest.approx((AC[499] + AC[500]) / 2, rel=1e-13)
    assert ALL["sd_unit"].sigma(1.0) == pytest.approx(14.614642, rel=1e-6)  # Stable Diffusion's sigma_max


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "edm", "sd", "sd_alpha2", "table"])
def test_dlambda_is_the_derivative(name):
    frame = ALL[name]
    t = np.array([0.2012345, 0.5012345, 0.9012345])
    h = 1e-6
    slope = (frame.lambda_(t + h) - frame.lambda_(t - h)) / (2 * h)
    np.testing.assert_allclose(frame.time.dlambda(t), slope, rtol=1e-6)


def test_a_tabulated_time_is_the_networks_own():
    """v-prediction in continuous time: the network is told atan(sigma) 2/pi."""
    sigma = np.geomspace(0.03, 500.0, 1001)
    table = TabulatedTime.from_points(np.arctan(sigma) * 2 / math.pi, -np.log(sigma))
    frame = frames.Frame("unit", table)
    for value in (0.03, 0.2, 1.0, 30.0, 500.0):
        assert table.model_time(frame.t_of_sigma(value)) == pytest.approx(math.atan(value) * 2 / math.pi, abs=2e-5)
        assert frame.sigma(table.t_of_model_time(table.model_time(frame.t_of_sigma(value)))) == pytest.approx(value, rel=1e-9)
    assert frame.t_of_lambda(math.inf) == table.t_0


def test_min_lambda_cuts_the_noisiest_steps():
    betas = [min(1 - math.cos((i + 1.008) / 1.008 / 1000) ** 2, 0.999) for i in range(1000)]
    ac = np.cos((np.arange(1, 1001) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    ac = np.clip(ac, 1e-9, None)
    frame = frames.discrete_vp(ac[:-1], min_lambda=-5.1)
    assert frame.lambda_(frame.time.t_max) >= -5.1 > 0.5 * math.log(ac[-2] / (1 - ac[-2]))
    assert frames.discrete_vp(betas=betas).alpha(1e-3) == pytest.approx(math.sqrt(1 - betas[0]), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear", "flow", "sd_unit"])
def test_predictions_convert_both_ways_and_are_the_same_in_every_frame(kind, name):
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 3, 4, generator=g, dtype=torch.float64).unbind()
    frame, vp = ALL[name], frames.linear_vp()
    lam = float(frame.lambda_(0.6))
    alpha, sigma = float(frame.alpha(0.6)), float(frame.sigma(0.6))
    x = alpha * x_0 + sigma * eps
    output = from_x_0(kind, x_0, x, alpha, sigma)
    torch.testing.assert_close(to_x_0(kind, output, x, alpha, sigma), x_0, rtol=1e-12, atol=1e-12)
    a, s = math.sqrt(1 / (1 + math.exp(-2 * lam))), math.sqrt(1 / (1 + math.exp(2 * lam)))
    meaning = {"x_0": x_0, "eps": eps, "v": a * eps - s * x_0, "flow": eps - x_0}[kind]
    torch.testing.assert_close(output, meaning, rtol=1e-10, atol=1e-10)
    moved = change_frame(x, frame, vp, lam)
    torch.testing.assert_close(moved, a * x_0 + s * eps, rtol=1e-12, atol=1e-12)


def test_pure_ends_change_frame():
    x = torch.ones(2)
    assert torch.equal(change_frame(x, frames.flow(), frames.linear_vp(), -math.inf), x)
    assert torch.equal(change_frame(x, frames.flow(), frames.edm(), math.inf), x)


def test_denoiser_of_tells_the_network_its_own_time():
    seen = []
    frame = frames.discrete_vp(AC).unit_alpha()
    denoiser = denoiser_of(lambda x, t: seen.append(t) or torch.zeros_like(x), frame, "eps")
    x = torch.ones(1, 2, dtype=torch.float64)
    assert torch.equal(denoiser(x, torch.tensor([float(frame.sigma(0.25))], dtype=torch.float64)), x)  # no noise predicted
    assert float(seen[0]) == pytest.approx(249.0, abs=1e-6)


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda: frames.discrete_vp(AC[::-1]), ScheduleError, "reverse the table"),
    (lambda: frames.discrete_vp(np.append(AC, 0.0)), ScheduleError, "zero-terminal-SNR"),
    (lambda: frames.discrete_vp(np.append(AC, np.nan)), ScheduleError, "between 0 and 1"),
    (lambda: frames.discrete_vp([[0.5]]), ScheduleError, "one dimension"),
    (lambda: frames.discrete_vp(), OptionError, "either"),
    (lambda: frames.discrete_vp(AC, interpolation="cubic"), OptionError, "interpolation"),
    (lambda: frames.discrete_vp(AC, min_lambda=10.0), ScheduleError, "fewer than 2"),
    (lambda: frames.linear_vp(-1.0), OptionError, "beta_0"),
    (lambda: frames.cosine_vp(0.0), OptionError, "cosine offset"),
    (lambda: frames.Frame("ve", ALL["edm"].time), OptionError, "scaling"),
    (lambda: TabulatedTime.from_points([0.0, 1.0, 1.0], [2.0, 1.0, 0.0]), ScheduleError, "labels that rise"),
    (lambda: TabulatedTime.from_points([0.0], [2.0]), ScheduleError, "at least 2 finite"),
    (lambda: ALL["flow"].alpha(1.5), ScheduleError, "outside 0..1"),
    (lambda: ALL["sd"].lambda_(-0.01), ScheduleError, "too far outside"),
    (lambda: ALL["flow"].t_of_sigma(1.5), ScheduleError, "sigma 1.5 is outside"),
    (lambda: ALL["linear"].t_of_alpha(-0.1), ScheduleError, "outside 0..1"),
    (lambda: from_x_0("eps", 1.0, 1.0, 1.0, 0.0), ScheduleError, "does not exist at sigma 0"),
    (lambda: from_x_0("noise", 1.0, 1.0, 1.0, 0.5), OptionError, "prediction kind"),
])
def test_bad_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()

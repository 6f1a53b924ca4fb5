"""Frames found by behaviour, and sigmas against formulas written out here."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fewstep.host.model import ModelPatcher
from fewstep.host.model_sampling import DiscreteSampling, FlowSampling
from fewstep.nodes.frames import frame_of, own_shift
from fewstep.nodes.schedule import FewStepSchedule, schedule
from fewstep.samplers import grids
from fewstep.samplers.errors import OptionError, ScheduleError
from fewstep.samplers.times import SigmaTime


def patcher(sampling):
    return ModelPatcher(SimpleNamespace(model_sampling=sampling))


@pytest.fixture
def models(gaussian):
    return {"eps": patcher(DiscreteSampling(gaussian.AC, "eps")), "v": patcher(DiscreteSampling(gaussian.AC, "v")),
            "flow": patcher(FlowSampling()), "flow3": patcher(FlowSampling(3.0)), "edm": patcher(Edm())}


class Edm:
    """A continuous model with the table that hosts give it for compatibility, and a logarithmic time."""

    sigmas = torch.linspace(np.log(0.002), np.log(120.0), 1000).exp()
    sigma_min, sigma_max = sigmas[0], sigmas[-1]

    def timestep(self, sigma):
        return sigma.log() / 4

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return noise * sigma + latent

    def percent_to_sigma(self, percent):
        return 1.0


def test_discrete_models_keep_their_own_times(models, gaussian):
    frame = frame_of(models["eps"].get_model_object("model_sampling"))
    assert frame.scaling == "unit" and frame.time.is_model_time
    np.testing.assert_allclose(frame.sigma(np.array([1 / 1000, 0.5, 1.0])), gaussian.SIGMAS[[0, 499, 999]], rtol=3e-6)


def test_flow_edm_and_mixed_models(models):
    assert frame_of(models["flow3"].get_model_object("model_sampling")).scaling == "flow"
    edm = frame_of(models["edm"].get_model_object("model_sampling"))
    assert edm.scaling == "unit" and edm.time.is_model_time
    assert edm.sigma(edm.time.t_T) == pytest.approx(120, rel=1e-5)
    # EDM tells its network log(sigma)/4, so steps even in its time are even in log sigma
    even = np.geomspace(120, 0.002, 6)
    np.testing.assert_allclose(schedule(models["edm"], "uniform_t", 6)[:-1], even, rtol=1e-4)
    assert edm.time.model_time(edm.t_of_sigma(1.0)) == pytest.approx(0.0, abs=1e-4)


def test_a_table_that_is_not_of_training_steps_is_not_taken_for_one():
    """Evenly numbered but not by whole steps, as continuous models fill the table in for others' use."""
    sampling = Edm()
    sampling.timestep = lambda sigma: torch.argmin((Edm.sigmas - sigma).abs()) / 1024
    assert isinstance(frame_of(sampling).time, SigmaTime), "its time does not rise from level to level either"
    sampling.timestep = lambda sigma: torch.argmin((Edm.sigmas - sigma).abs()) * 20 + 19  # a distilled model's
    assert frame_of(sampling).time.is_model_time


def test_a_patched_sampling_counts_and_not_the_class(models):
    clone = models["eps"].clone()
    clone.add_object_patch("model_sampling", FlowSampling())
    assert schedule(clone, "uniform_t", 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert float(schedule(models["eps"], "uniform_t", 4)[0]) > 14


def test_an_unknown_way_to_mix_noise_is_named():
    odd = Edm()
    odd.noise_scaling = lambda sigma, noise, latent, max_denoise=False: latent * 0.3
    with pytest.raises(ScheduleError, match="keeps"):
        frame_of(odd)


def test_uniform_time_hits_the_training_steps(models, gaussian):
    expected = [*gaussian.SIGMAS[[999, 666, 333, 0]], 0]
    np.testing.assert_allclose(schedule(models["eps"], "uniform_t", 4), expected, rtol=1e-5)


def test_karras_formula(models, gaussian):
    low, high = gaussian.SIGMAS[[0, 999]]
    expected = (high ** (1 / 5) + np.linspace(0, 1, 6) * (low ** (1 / 5) - high ** (1 / 5))) ** 5
    np.testing.assert_allclose(schedule(models["v"], "karras", 6, rho=5.0), [*expected, 0], rtol=1e-5)


def test_uniform_lambda_is_geometric_in_sigma(models, gaussian):
    np.testing.assert_allclose(
        schedule(models["eps"], "uniform_lambda", 7), [*np.geomspace(*gaussian.SIGMAS[[999, 0]], 7), 0], rtol=1e-5)


def test_edm_rho_stays_inside_the_model(models):
    sigmas = schedule(models["edm"], "edm_rho", 5)
    expected = (80 ** (1 / 7) + np.linspace(0, 1, 5) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas, [*expected, 0], rtol=1e-5)


def test_flow_schedules_reach_zero_evenly(models):
    assert schedule(models["flow"], "uniform_t", 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    np.testing.assert_allclose(schedule(models["flow"], "quadratic_t", 4), [1, 9 / 16, 1 / 4, 1 / 16, 0], rtol=1e-6)
    u = np.array([1, 0.75, 0.5, 0.25, 0])
    for shift, given in ((3.0, 0.0), (2.5, 2.5)):  # 0 is the model's own 3
        np.testing.assert_allclose(
            schedule(models["flow3"], "shifted", 4, shift=given), shift * u / (1 + (shift - 1) * u), rtol=1e-6)
    u = 0.999 * u
    np.testing.assert_allclose(schedule(models["flow"], "trailing", 4), u, rtol=1e-6)  # as diffusers' use_flow_sigmas
    np.testing.assert_allclose(schedule(models["flow3"], "trailing", 4), 3 * u / (1 + 2 * u), rtol=1e-6)
    assert own_shift(FlowSampling(5.0)) == pytest.approx(5.0)


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(("eps", "v", "flow", "flow3", "edm"), grids.GRIDS)))
def test_every_schedule_on_every_model(models, name, kind):
    for steps, denoise in ((1, 1.0), (2, 1.0), (9, 1.0), (5, 0.4), (3, 0.4), (1, 0.3)):
        sigmas = schedule(models[name], kind, steps, denoise)
        assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
        assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert sigmas[0] <= models[name].get_model_object("model_sampling").sigma_max
        whole = schedule(models[name], kind, int(steps / denoise))
        assert torch.equal(sigmas, whole[-steps - 1 :])
    if kind != "edm_rho" and not (kind in ("uniform_lambda", "trailing") and "flow" in name):
        assert whole[0] == models[name].get_model_object("model_sampling").sigma_max  # hosts test for a full start


def test_the_node(models):
    node = FewStepSchedule()
    assert node.build(models["flow"], "uniform_t", 2, 1.0)[0].tolist() == [1, 0.5, 0]
    assert node.build(models["flow"], "uniform_t", 2, 0.0)[0].shape == (0,)
    with pytest.raises(OptionError, match="did you mean 'karras'"):
        node.build(models["flow"], "karas", 2, 1.0)
    with pytest.raises(OptionError, match="last of"):
        node.build(models["flow"], "uniform_t", 100, 0.001)

"""The nodes of dynamic compensation and DualFast: what goes into the recipe, and what is refused in the node itself."""

import pytest
import torch
from fewstep import NODE_CLASS_MAPPINGS as NODES
from fewstep.nodes.calibration import CalibrationInput
from fewstep.nodes.frames import frame_of
from fewstep.nodes.sampling import recipe_of
from fewstep.nodes.schedule import schedule
from fewstep.samplers import Recipe
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.calibrate_ratios import calibrate_ratios
from fewstep.samplers.calibration.polynomial import SD21, evaluate, fit_polynomial
from fewstep.samplers.calibration.search_ratios import draw_starts
from fewstep.samplers.errors import CalibrationError, CalibrationWarning, OptionError, PlanError
from fewstep.samplers.grids import from_sigmas

UNIPC = {
    "order": 2, "variant": "bh2", "prediction": "data", "lower_order_final": "published", "corrector": True,
    "disable_corrector": "0", "thresholding": False,
}
MIX = {"c_max": 0.3, "c_min": 0.0, "schedule": "linear", "tau": "first", "scope": "all", "skip_last": True}


def compensate(sampler, **widgets):
    return NODES["FewStepDynamicCompensation"]().correct(sampler, **{"dc_order": 2, "ratios": "", "guidance": 7.5, **widgets})[0]


@pytest.fixture
def unipc(host):
    return NODES["FewStepUniPC"]().build(**UNIPC)[0]


@pytest.fixture
def calibrated(host, tmp_path, monkeypatch):
    """(ratios searched on the mixture, their sigmas), in a folder that the store knows."""
    monkeypatch.setattr(store, "_folders", [tmp_path])
    model = host.demo_checkpoint("eps")[0]
    sigmas = schedule(model, "uniform_t", 6)
    grid = from_sigmas(frame_of(model.get_model_object("model_sampling")), sigmas)
    starts, held = (draw_starts(grid, torch.zeros(4, 3, 3), seed, 3) for seed in (0, 50))

    denoiser = GaussianMixture.make(0).denoiser(grid.frame, 7.5)
    made = calibrate_ratios(denoiser, Recipe("unipc", {"disable_corrector": (0,)}), grid, starts, held, guidance=7.5)
    assert made.meta["helps"]
    return CalibrationInput(store.save(made, tmp_path / "r.safetensors"), made), sigmas


def sampled(host, sampler, sigmas):
    model = host.demo_checkpoint("eps")[0]
    text = torch.zeros(1, 1, 11)
    text[0, 0, 3] = 1
    latent = {"samples": torch.zeros(2, 4, 3, 3)}
    return host.sample(model, 5, 1.0, sampler, sigmas, [[text, {}]], [[text, {}]], latent)["samples"]


def test_typed_ratios(host, unipc):
    sampler = compensate(unipc, ratios="1, 1, 0.8, 1.1, 0.9 1.2")
    assert recipe_of(sampler).correctors == (("dynamic_compensation", {"dc_order": 2, "ratios": (1.0, 1.0, 0.8, 1.1, 0.9, 1.2)}),)
    sigmas = schedule(host.demo_checkpoint("eps")[0], "uniform_t", 6)
    plain, changed = (sampled(host, s, sigmas) for s in (unipc, sampler))
    assert torch.isfinite(changed).all() and 1e-4 < (plain - changed).abs().max() < 1
    with pytest.raises(OptionError, match="6 ratios were given for 8 steps"):
        sampled(host, sampler, schedule(host.demo_checkpoint("eps")[0], "uniform_t", 8))


def test_the_published_polynomial(host, unipc):
    sampler = compensate(unipc, guidance=6.0)
    sigmas = schedule(host.demo_checkpoint("eps")[0], "uniform_t", 8)
    typed = compensate(unipc, ratios=", ".join(map(str, evaluate(SD21, 6.0, 8))))
    assert torch.equal(sampled(host, sampler, sigmas), sampled(host, typed, sigmas))
    with pytest.warns(CalibrationWarning, match=r"fitted for unipc\(.*\), not for ddim"):
        compensate(NODES["FewStepDDIM"]().build(prediction="x_0", eta=0.0, s_noise=1.0)[0])


def test_a_calibration(host, unipc, calibrated):
    calibration, sigmas = calibrated
    sampler = compensate(unipc, calibration=calibration)
    assert recipe_of(sampler).correctors[0][1]["ratios"] == calibration.reference
    typed = compensate(unipc, ratios=", ".join(map(repr, calibration.calibration.tensors["ratios"].tolist())))
    assert torch.equal(sampled(host, sampler, sigmas), sampled(host, typed, sigmas))
    chained = NODES["FewStepTimeShift"]().correct(sampler, window=20, cutoff=100.0, wiring="paper", clamp=True)[0]
    assert torch.isfinite(sampled(host, chained, sigmas)).all()
    with pytest.raises(OptionError, match="both typed and connected"):
        compensate(unipc, ratios="1, 1, 1, 1, 1, 1", calibration=calibration)
    other = NODES["FewStepUniPC"]().build(**{**UNIPC, "disable_corrector": ""})[0]
    with pytest.raises(CalibrationError, match="use that solver"):
        compensate(other, calibration=calibration)
    with pytest.raises(CalibrationError, match="other noise levels"):
        sampled(host, sampler, schedule(host.demo_checkpoint("eps")[0], "karras", 6))


def test_a_fitted_polynomial(unipc, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folders", [tmp_path])
    made = fit_polynomial({(g, n): evaluate(SD21, g, n) for g in (1.0, 6.0, 12.0) for n in (6, 8, 10, 20)})
    sampler = compensate(unipc, guidance=5.0, calibration=CalibrationInput(store.save(made, tmp_path / "p.safetensors"), made))
    assert recipe_of(sampler).correctors[0][1]["guidance"] == 5.0


def test_what_a_host_cannot_check_is_checked(unipc):
    node = NODES["FewStepDynamicCompensation"]
    assert node.VALIDATE_INPUTS("1, 1, .5") is True and node.VALIDATE_INPUTS("") is True and node.VALIDATE_INPUTS(None) is True
    assert "expected numbers separated by commas" in node.VALIDATE_INPUTS("1, one")
    with pytest.raises(OptionError, match="expected 1"):
        compensate(unipc, ratios="1, 0.9, 1")
    with pytest.raises(PlanError, match="one evaluation per step"):
        compensate(NODES["FewStepDEISRungeKutta"]().build(tableau="2heun")[0], ratios="1, 1, 0.9, 1, 1, 1")


def test_dualfast(host, unipc):
    node = NODES["FewStepDualFast"]
    assert "xperimental" in node.DISPLAY_NAME and "xperimental" in node.DESCRIPTION
    sampler = node().correct(unipc, **MIX)[0]
    assert recipe_of(sampler).correctors == (("dualfast", MIX),)
    sigmas = schedule(host.demo_checkpoint("eps")[0], "uniform_t", 6)
    assert (sampled(host, sampler, sigmas) - sampled(host, unipc, sigmas)).abs().max() > 1e-4
    both = [compensate(sampler, ratios="1,1,.9,1,1,1"), node().correct(compensate(unipc, ratios="1,1,.9,1,1,1"), **MIX)[0]]
    assert torch.equal(*(sampled(host, s, sigmas) for s in both))
    noisy = NODES["FewStepDDIM"]().build(prediction="x_0", eta=1.0, s_noise=1.0)[0]
    with pytest.raises(PlanError, match="set eta to 0"):
        node().correct(noisy, **MIX)

"""DPM-Solver-v3 in the graph: statistics from a file, their curves, the authors' files, and what is refused or said."""

import logging

import numpy as np
import pytest
import torch
from fewstep.nodes import NODE_CLASS_MAPPINGS as NODES
from fewstep.nodes.calibration import CalibrationInput, fingerprint_of, opened, register_folders
from fewstep.nodes.frames import frame_of
from fewstep.nodes.inside import work_inside
from fewstep.nodes.sampling import recipe_of
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.measure_statistics import lambda_grid, measure_statistics
from fewstep.samplers.calibration.statistics import Statistics
from fewstep.samplers.errors import CalibrationError
from fewstep.samplers.recipe import Recipe


def defaults(node_id, **changes):
    return {n: e[1].get("default") for n, e in NODES[node_id].INPUT_TYPES()["required"].items()} | changes


@pytest.fixture
def folder(host, tmp_path, monkeypatch):
    """The embedded host's own calibration folder, in a temporary place."""
    monkeypatch.setattr(store, "_folders", [])
    monkeypatch.setattr(host, "models_directory", tmp_path / "models")
    path = register_folders()
    path.mkdir(parents=True, exist_ok=True)
    return path


def measure(host, model, text, latent, cfg=2.0):
    """Statistics of the host's model, measured inside its sampling on made-up clean samples."""
    found = []

    def work(session):
        denoiser, frame = session.denoiser, session.frame
        samples = 0.3 + 0.5 * torch.randn(4, *session.like.shape[1:], generator=torch.Generator().manual_seed(0))
        rounded = frame.time.knots is not None
        lam = lambda_grid(frame, 10, rounded=rounded)
        found.append(measure_statistics(denoiser, frame, samples, lam, guidance=cfg, batch=2, rounded=rounded))

    work_inside(model, text("3"), text(""), cfg, latent, 0, work)
    return found[0]


@pytest.mark.parametrize("form", ["eps", "flow"])
def test_measured_in_the_host_saved_loaded_and_sampled_with(host, folder, text, form, caplog):
    model = host.demo_checkpoint(form)[0]
    latent = {"samples": torch.zeros(2, 4, 6, 6)}
    made = measure(host, model, text, latent)
    assert float(made.tensors["l"][0].mean()) > 0.95 and made.meta["guidance"] == 2.0
    # the guided model is linear in the state: l = sigma^2/(alpha^2 0.25 + sigma^2), and nothing else varies
    power = torch.exp(-2 * made.tensors["lambda"]).reshape(-1, 1, 1, 1)
    assert float((made.tensors["l"] - power / (0.25 + power)).abs().max()) < 2e-3
    store.save(made, folder / "s.safetensors")
    (sampler,) = NODES["FewStepDPMSolverV3"]().build(statistics=opened("s.safetensors"), **defaults("FewStepDPMSolverV3"))
    recipe = recipe_of(sampler)
    assert recipe.options["statistics"].startswith("s.safetensors@") and recipe.references == [recipe.options["statistics"]]
    sigmas = NODES["FewStepSchedule"]().build(**defaults("FewStepSchedule", model=model, steps=6))[0]
    with caplog.at_level(logging.WARNING):
        result = host.sample(model, 1, 2.0, sampler, sigmas, text("3"), text(""), latent)["samples"]
    assert torch.isfinite(result).all() and "calibrated at cfg" not in caplog.text
    plain = NODES["FewStepDPMSolverV3"]().build(**defaults("FewStepDPMSolverV3"))[0]
    other = host.sample(model, 1, 2.0, plain, sigmas, text("3"), text(""), latent)["samples"]
    assert not torch.equal(result, other)
    with caplog.at_level(logging.WARNING):
        host.sample(model, 1, 7.0, sampler, sigmas, text("3"), text(""), latent)
    assert "was calibrated at cfg 2, this samples at cfg 7" in caplog.text


def test_another_purpose_a_changed_file_and_a_missing_one_are_named(host, folder):
    ratios = store.Calibration("ratios", {"ratios": torch.ones(3)})
    wrong = CalibrationInput(store.save(ratios, folder / "r.safetensors"), ratios)
    with pytest.raises(CalibrationError, match="holds ratios, but statistics are needed"):
        NODES["FewStepDPMSolverV3"]().build(statistics=wrong, **defaults("FewStepDPMSolverV3"))
    with pytest.raises(CalibrationError, match="of statistics is needed"):
        NODES["FewStepShowStatistics"]().show(wrong)
    gone = CalibrationInput("gone.safetensors@0123456789abcdef", ratios)
    with pytest.raises(CalibrationError, match="no calibration file 'gone.safetensors'"):
        NODES["FewStepDPMSolverV3"]().build(statistics=gone, **defaults("FewStepDPMSolverV3"))


def test_the_curves_are_shown_with_their_ranges(host):
    lam = np.linspace(-3, 3, 21)
    wave = torch.sin(torch.from_numpy(lam)).reshape(-1, 1, 1, 1).repeat(1, 4, 1, 1)
    made = Statistics(lam, wave, 2 * wave, -wave, {"guidance": 4.0}).calibration()
    shown = NODES["FewStepShowStatistics"]().show(CalibrationInput("x", made))
    image, text = shown["result"]
    assert image.shape[0] == 1 and image.shape[-1] == 3 and float(image.max()) > 0.5
    assert "guidance: 4" in text and "lambda -3.000 to 3.000 in 21 levels" in text and "s -1.99 to 1.99" in text
    assert shown["ui"]["text"] == [text]


def test_official_statistics_are_imported_for_one_model(host, folder, monkeypatch):
    monkeypatch.setattr(host, "_load_demo", None)  # the demo model has weights, unlike the other tests' formula
    model = host.demo_checkpoint("eps")[0]
    source = folder / "sd" / "0.001_12_64"
    source.mkdir(parents=True)
    values = np.random.default_rng(0).uniform(0.1, 0.9, (13, 4, 6, 6)).astype(np.float32)
    np.savez(source / "l.npz", l=values)
    np.savez(source / "sb.npz", s=0.1 * values, b=0.2 * values)
    node = NODES["FewStepOfficialStatistics"]
    assert node.INPUT_TYPES()["required"]["folder"][0] == ["sd/0.001_12_64"]
    changed = node.IS_CHANGED(folder="sd/0.001_12_64")
    (made,) = node().read(model, "sd/0.001_12_64")
    frame = frame_of(model.get_model_object("model_sampling"))
    found = Statistics.of(made.reference)
    assert found.lambda_[-1] == pytest.approx(float(frame.lambda_(0.001))) and np.array_equal(found.s.numpy(), (0.1 * values).astype(np.float64))
    with pytest.raises(CalibrationError, match="made for another model"):
        made.calibration.check_model(fingerprint_of(host.demo_checkpoint("flow")[0]))
    np.savez(source / "l.npz", l=values * 0.5)
    assert node.IS_CHANGED(folder="sd/0.001_12_64") != changed
    with pytest.raises(CalibrationError, match="not a name inside"):
        node().read(model, "../sd")
    (sampler,) = NODES["FewStepDPMSolverV3"]().build(statistics=made, **defaults("FewStepDPMSolverV3", per_channel=True))
    assert Recipe.from_json(recipe_of(sampler).to_json()).options["per_channel"] is True

"""Training: targets, the split of randomness, and going on from a checkpoint as if never stopped."""

import argparse
import csv

import numpy as np
import pytest
import torch
from fewstep.demo import data, measure, train, weights


def arguments(tmp_path, **changes):
    values = {
        "form": "flow", "steps": 4, "batch": 8, "width": 8, "lr": 1e-3, "ema": 0.999, "seed": 3, "warm_start": None,
        "work": str(tmp_path), "threads": 1, "autocast": False, "snr_cap": None,
    }
    return argparse.Namespace(**{**values, **changes})


def test_resumed_training_equals_uninterrupted(tmp_path):
    straight = train.Trainer(arguments(tmp_path))
    for _ in range(4):
        straight.one_step()
    first = train.Trainer(arguments(tmp_path))
    for _ in range(2):
        first.one_step()
    first.save()
    second = train.Trainer(arguments(tmp_path))
    second.resume()
    assert second.step == 2
    for _ in range(2):
        second.one_step()
    for name, value in straight.ema.state_dict().items():
        assert torch.equal(value, second.ema.state_dict()[name]), name
    assert straight.rows[-1][:4] == second.rows[-1][:4]
    # Each file is written whole under its final name.
    assert [path.name for path in tmp_path.iterdir()] == ["flow.pt"]


def test_checkpoint_of_other_arguments_is_refused(tmp_path):
    train.Trainer(arguments(tmp_path)).save()
    with pytest.raises(SystemExit, match="other arguments"):
        train.Trainer(arguments(tmp_path, lr=1e-4)).resume()


def test_augmentation_is_light_and_seeded():
    part = data.load()[0]
    images = part.images[:64]
    one, two = (data.augmented_latents(images, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(one, data.augmented_latents(images, torch.Generator().manual_seed(0)))
    plain = data.Digits(images, part.labels[:64]).latents()
    for moved in (one, two):
        rms = (moved - plain).square().mean(dim=(1, 2, 3)).sqrt()
        assert rms.min() > 0 and 0.05 < rms.mean() < 0.6


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_noisy_inputs_have_unit_scale_at_both_ends(form):
    x0, noise = data.load()[1].latents(), torch.randn(360, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    clean, t, _ = train.noisy(form, x0, noise, torch.zeros(360))
    assert t.max() == 0 and (clean - x0).abs().max() < 0.2
    pure, t, _ = train.noisy(form, x0, noise, torch.full((360,), 0.99999))
    assert t.min() >= 999 and (pure - noise).abs().mean() < 0.1


def test_learning_rate_rises_then_falls():
    rates = [train.learning_rate(step, 1000, 1.0, warmup=100) for step in range(1000)]
    assert np.argmax(rates) in (99, 100) and rates[0] == pytest.approx(0.01) and rates[-1] == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_shipped_logs_belong_to_the_shipped_weights(form):
    with open(weights.FOLDER.parent / f"training_log_{form}.csv") as file:
        rows = list(csv.DictReader(file))
    facts = weights.load(weights.path_of(form), form)[1]
    assert rows[-1]["step"] == facts["steps"]
    assert float(rows[-1]["held_out_ema_loss"]) < 0.8 * float(rows[0]["held_out_ema_loss"])


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200, 5))
    a = (a - a.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T  # mean 0, covariance 1 exactly
    assert measure.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert measure.frechet(a, a + 2.0) == pytest.approx(5 * 4.0)
    assert measure.frechet(a, 3.0 * a) == pytest.approx(5 * (3.0 - 1.0) ** 2)


def test_stratified_draws():
    labels = np.repeat(np.arange(10), 6)
    rows = measure.pick(labels, np.full(10, 4), np.random.default_rng(0))
    assert len(set(rows)) == 40 and (np.bincount(labels[rows]) == 4).all()


def test_nearest_neighbour_distance():
    train_latents = torch.zeros(2, 4, 8, 8)
    train_latents[1] += 3.0
    assert measure.neighbours(torch.full((1, 4, 8, 8), 2.5), train_latents) == pytest.approx(0.5)

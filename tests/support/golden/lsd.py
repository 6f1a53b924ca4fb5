"""LSD: discrete steps by the official schedulers on an exact small model, and fitted plans by an independent derivation."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fewstep.samplers import frames, grids, masked
from fewstep.samplers import run as run_plan
from fewstep.samplers.analytic import start_noise
from fewstep.samplers.calibration.stagewise import fit_plan


def accepts(head, settings):
    return head.get("system") == "LSD"


def run_discrete(case):
    s = case.set
    output, power = case["output"], s["model"] == "sedd"
    score = output.exp() if power else masked.score_of_probabilities(output, s["t"], s["eps"])
    options = {"kind": s["sampler"], "phi": s["phi"], "phi_mode": "power" if power else "scale", "eps": s["eps"]}
    tokens = case.tensors["tokens"].long()
    assert score.shape[-1] == s["mask"] + 1 == s["vocabulary"] + 1
    got = masked.transition(tokens, score, s["t"], s["step"], **options)
    torch.testing.assert_close(got, case["prob"], rtol=0, atol=1e-12)
    too_long = bool((case["prob"] < 0).any())
    with pytest.warns(RuntimeWarning, match="too long") if too_long else nullcontext():
        drawn = masked.masked_step(tokens, score, s["t"], s["step"], case["uniform"], **options)
    assert torch.equal(drawn, case["next"].long())


def run_continuous(case):
    s, frame, states = case.set, frames.edm(), case["teacher_states"]
    grid = grids.from_sigmas(frame, case["sigmas"])
    denoiser = case.model.denoiser(frame, s["guidance"])
    shape = tuple(states.shape[1:])
    torch.testing.assert_close(states[0], start_noise(s["train_seed"], shape) * grid.sigma[0], rtol=0, atol=1e-12)
    fitted, report = fit_plan(denoiser, states, grid, order=s["order"], ridge=s["ridge"], batch=2)
    weights = fitted.m / fitted.gain[:, None]
    expected = np.zeros_like(weights)
    for k, row in enumerate(case["weights"].tolist()):
        for age, w in enumerate(row[: k + 1]):
            expected[k, k - age] = w
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    torch.testing.assert_close(case["x_test"], start_noise(s["test_seed"], shape) * grid.sigma[0], rtol=0, atol=1e-12)
    result = run_plan(fitted.plan(), denoiser, case["x_test"])
    case.compare(result, 1e-8, "x_final")
    error = ((result - case["x_reference"]) ** 2).mean().item()
    np.testing.assert_allclose(error, s["mse_learned"], rtol=1e-6)
    assert all(a <= b * (1 + 1e-9) for a, b in zip(report["after"], report["before"], strict=True))


def run(case):
    if "sampler" in case.set:
        run_discrete(case)
    elif "ridge" in case.set:
        run_continuous(case)
    else:
        phi = masked.fit_phi(case["student"], case["teacher"])
        np.testing.assert_allclose(phi, float(case["phi"]), rtol=1e-12)

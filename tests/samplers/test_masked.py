"""Masked discrete steps: exact laws, sums, LSD's factor, and bad input. The official schedulers' numbers: test_golden."""

import math

import pytest
import torch
from fewstep.samplers import masked
from fewstep.samplers.errors import OptionError

V = 4


def score_at(t, probabilities, tokens):
    """The exact score of places with independent laws ``probabilities`` [L, V]."""
    score = masked.score_of_probabilities(torch.nn.functional.pad(probabilities, (0, 1)), t).expand(*tokens.shape, V + 1).clone()
    known = tokens != V
    score[known] = 0.0
    return score.scatter_(-1, tokens.unsqueeze(-1), 1.0)


@pytest.fixture
def laws():
    return torch.softmax(torch.randn(3, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)


@pytest.mark.parametrize(("t", "dt"), [(1.0, 0.25), (0.6, 0.3), (0.3, 0.29)])
def test_tweedie_gives_the_exact_posterior_of_one_token(laws, t, dt):
    tokens = torch.full((1, 3), V)
    got = masked.transition(tokens, score_at(t, laws, tokens), t, dt, kind="tweedie")
    hidden = [1.0 - math.exp(-masked.total_noise(s)) for s in (t, t - dt)]  # chances to be masked
    still = hidden[1] / hidden[0]
    expected = torch.cat([(1 - still) * laws, torch.full((3, 1), still, dtype=torch.float64)], -1)
    torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["euler", "tweedie"])
def test_unmasked_tokens_stay_and_weights_add_up_to_one(laws, kind):
    tokens = torch.tensor([[V, 2, V]])
    got = masked.transition(tokens, score_at(0.7, laws, tokens), 0.7, 0.1, kind=kind)
    torch.testing.assert_close(got.sum(-1), torch.ones(1, 3, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(got[0, 1], torch.eye(V + 1, dtype=torch.float64)[2], rtol=0, atol=1e-14)


def test_euler_is_exact_too_as_the_chance_to_be_masked_falls_evenly_and_phi_is_a_longer_step(laws):
    tokens, t = torch.full((1, 3), V), 0.5
    score = score_at(t, laws, tokens)
    for dt in (0.4, 0.01):
        pair = [masked.transition(tokens, score, t, dt, kind=kind) for kind in ("euler", "tweedie")]
        torch.testing.assert_close(*pair, rtol=0, atol=1e-13)
    longer = masked.transition(tokens, score, t, 0.02, kind="euler")
    scaled = masked.transition(tokens, score, t, 0.01, kind="euler", phi=2.0)
    torch.testing.assert_close(longer, scaled, rtol=0, atol=1e-15)


def test_many_steps_draw_the_law(laws):
    """From all masked to none, 16 Tweedie steps: token frequencies of 4000 draws within four standard errors."""
    tokens, g, steps, count = torch.full((4000, 3), V), torch.Generator().manual_seed(0), 16, 4000
    for k in range(steps):
        t, dt = 1.0 - k / steps, 1.0 / steps
        uniform = torch.rand(count, 3, V + 1, generator=g, dtype=torch.float64)
        tokens = masked.masked_step(tokens, score_at(t, laws, tokens), t, dt, uniform, last=k == steps - 1)
    assert int(tokens.max()) < V
    shares = torch.stack([(tokens == v).double().mean(0) for v in range(V)], -1)
    assert ((shares - laws).abs() < 4 * (laws * (1 - laws) / count).sqrt()).all()


def test_the_closed_form_is_where_gradient_descent_ends():
    g = torch.Generator().manual_seed(1)
    student = torch.rand(8, 5, generator=g, dtype=torch.float64)
    teacher = 1.3 * student + 0.1 * torch.rand(8, 5, generator=g, dtype=torch.float64)
    phi = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([phi], lr=0.1)
    for _ in range(1000):
        optimiser.zero_grad()
        (phi * student - teacher).square().mean().backward()
        optimiser.step()
    assert masked.fit_phi(student, teacher) == pytest.approx(phi.item(), abs=1e-12)


def test_step_sizes_keep_the_span():
    student = torch.tensor([[1.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    moved = torch.tensor([[0.3, 0.6], [1.0, 1.0]], dtype=torch.float64)  # kappa 0.3 and 0.5
    torch.testing.assert_close(masked.fit_step_sizes(student, moved, 1.0).tolist(), [0.375, 0.625])


def test_bad_input_is_named(laws):
    tokens = torch.full((1, 3), V)
    score = score_at(0.5, laws, tokens)
    cases = [
        ({"phi": 0.0}, "phi is 0.0"), ({"phi": math.nan}, "phi is nan"), ({"kind": "heun"}, "kind is 'heun'"),
        ({"phi_mode": "log"}, "phi_mode is 'log'"),
    ]
    for options, words in cases:
        with pytest.raises(OptionError, match=words):
            masked.transition(tokens, score, 0.5, 0.1, **options)
    with pytest.raises(OptionError, match="does not end between"):
        masked.transition(tokens, score, 0.5, 0.6)
    with pytest.raises(OptionError, match=r"tokens must lie in 0\.\.4"):
        masked.transition(tokens + 1, score, 0.5, 0.1)
    with pytest.raises(OptionError, match="do not fit tokens"):
        masked.transition(tokens[:, :2], score, 0.5, 0.1)
    with pytest.raises(OptionError, match="nothing in common"):
        masked.fit_phi(score, -score)
    with pytest.raises(OptionError, match="teacher's"):
        masked.fit_phi(score, score[:, :2])
    with pytest.raises(OptionError, match="at t 0"):
        masked.score_of_probabilities(laws, 0.0)
    with pytest.warns(RuntimeWarning, match="too long for the euler rule"):
        masked.masked_step(tokens, score * 3, 0.5, 0.5, torch.rand(1, 3, V + 1, dtype=torch.float64), kind="euler")

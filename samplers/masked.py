"""Steps of masked discrete diffusion (SEDD, MaskGIT-like models) with LSD's learned factor, and its fit in closed form.

For models over tokens 0..V-1 with a mask V, as they are found in language modelling. Log-linear noise: with
``sbar(t) = -log(1 - (1 - eps) t)`` a token is masked with probability ``1 - exp(-sbar)``. The *score* of a masked place is
``p_t(y)/p_t(mask) = exp(-sbar)/(1 - exp(-sbar)) p(x_0 = y | the unmasked)``; of the token that stands there it is 1.
(Lou et al., arXiv 2310.16834; LSD: Fu et al., arXiv 2509.19962.)
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch

from .errors import OptionError, check_choice, check_range

EPS = 1e-3


def total_noise(t: float, eps: float = EPS) -> float:
    """sbar(t), t from 0 (data) to 1."""
    check_range("t", t, 0.0, 1.0)
    return -math.log1p(-(1.0 - eps) * t)


def score_of_probabilities(probabilities: torch.Tensor, t: float, eps: float = EPS) -> torch.Tensor:
    """Scores from p(x_0 = y | the unmasked) [B, L, V] or [B, L, V + 1], for models that predict probabilities."""
    noise = total_noise(t, eps)
    if noise <= 0:
        raise OptionError("at t 0 nothing is masked, and probabilities give no score; use a t above 0")
    return probabilities * (1.0 / math.expm1(noise))


def transition(
    tokens: torch.Tensor, score: torch.Tensor, t: float, dt: float, *, kind: Literal["euler", "tweedie"] = "tweedie",
    phi: float = 1.0, phi_mode: Literal["scale", "power"] = "scale", eps: float = EPS,
) -> torch.Tensor:
    """Weights [B, L, V + 1] of the tokens at t - dt; Euler's add up to 1, Tweedie's do where the score is exact.

    The weight of the mask is negative where the step is too long for the rule (Euler's, or a phi far from 1).

    Args:
        tokens: [B, L] int64 in 0..V.
        score: [B, L, V + 1] at ``tokens`` and t.
        t, dt: from t down to t - dt >= 0.
        kind: Euler's rule, or the analytic (Tweedie) one, which is exact for a single token.
        phi: the learned factor of this step; 1 is the plain sampler.
        phi_mode: ``scale`` multiplies the score (the paper); ``power`` its logarithm (the authors' code for SEDD).
        eps: of the noise schedule.

    Raises:
        OptionError: tokens outside 0..V, shapes that differ, phi not positive, a step beyond 0.
    """
    check_choice("kind", kind, ("euler", "tweedie"))
    check_choice("phi_mode", phi_mode, ("scale", "power"))
    if not 0.0 < phi < math.inf:
        raise OptionError(f"phi is {phi!r}, expected a positive number")
    if not 0.0 < dt <= t:
        raise OptionError(f"a step of {dt} from t {t} does not end between 0 and {t}")
    if score.shape[:-1] != tokens.shape:
        raise OptionError(f"scores of shape {tuple(score.shape)} do not fit tokens of shape {tuple(tokens.shape)}")
    mask = score.shape[-1] - 1
    if bool((tokens < 0).any()) or bool((tokens > mask).any()):
        raise OptionError(f"tokens must lie in 0..{mask} ({mask} is the mask), got {int(tokens.min())}..{int(tokens.max())}")
    score = score * phi if phi_mode == "scale" else score**phi
    masked = (tokens == mask).unsqueeze(-1)
    here = torch.nn.functional.one_hot(tokens, mask + 1).to(score.dtype)
    if kind == "euler":
        rate = (1.0 - eps) / (1.0 - (1.0 - eps) * t)
        moved = dt * rate * score[..., :mask] * masked
        weights = here * (1.0 - moved.sum(-1, keepdim=True))
        weights[..., :mask] += moved
        return weights
    d = total_noise(t, eps) - total_noise(t - dt, eps)
    z = score * math.exp(d)
    z[..., mask] += -math.expm1(d) * score.sum(-1)
    return z * torch.where(masked, math.exp(-d) * here - math.expm1(-d), math.exp(-d) * here)


def draw(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens by the Gumbel rule from weights >= 0 and as many uniform numbers in [0, 1)."""
    return (weights / (1e-6 - torch.log(1e-6 + (1.0 - 1e-6) * uniform))).argmax(-1)


def masked_step(
    tokens: torch.Tensor, score: torch.Tensor, t: float, dt: float, uniform: torch.Tensor, *,
    kind: Literal["euler", "tweedie"] = "tweedie", phi: float = 1.0, phi_mode: Literal["scale", "power"] = "scale",
    eps: float = EPS, last: bool = False,
) -> torch.Tensor:
    """The tokens [B, L] at t - dt; see ``transition``. ``last`` leaves no place masked.

    Warns (RuntimeWarning) where a weight is negative, and takes 0 for it.
    """
    weights = transition(tokens, score, t, dt, kind=kind, phi=phi, phi_mode=phi_mode, eps=eps)
    if bool((weights < 0).any()):
        warnings.warn(
            f"the step from t {t:g} by {dt:g} is too long for the {kind} rule with phi {phi:g}: a negative weight is set to 0; "
            "take more steps, or kind='tweedie' with phi 1", RuntimeWarning, stacklevel=2,
        )
        weights = weights.clamp(min=0.0)
    return draw(weights[..., :-1], uniform[..., :-1]) if last else draw(weights, uniform)


def fit_phi(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """The phi with the least ``|phi s - s*|^2`` over scores of any one shape: ``<s, s*>/<s, s>``.

    LSD finds it by gradient descent. Raises OptionError where the student's scores vanish or phi would not be positive.
    """
    if student.shape != teacher.shape:
        raise OptionError(f"student scores have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
    s, target = student.double(), teacher.double()
    size = float((s * s).sum())
    phi = float((s * target).sum()) / size if size > 0 else math.nan
    if not 0.0 < phi < math.inf:
        raise OptionError(f"the fitted factor is {phi}, which no sampler can use: the two sets of scores have nothing in common")
    return phi


def fit_step_sizes(student: torch.Tensor, transitions: torch.Tensor, span: float) -> torch.Tensor:
    """LSD+'s step sizes [M] that add up to ``span``.

    Args:
        student: the student's scores [M, ...] at its steps.
        transitions: the teacher's ``sum_j dt_j s*_j`` [M, ...] over each of the student's intervals. (The paper writes one
            teacher step there, which would shrink every step by the ratio of the step counts.)
    """
    kappa = torch.tensor([fit_phi(s, moved) for s, moved in zip(student, transitions, strict=True)], dtype=torch.float64)
    return kappa * (span / float(kappa.sum()))

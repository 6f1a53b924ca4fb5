"""The discrete variance-preserving noise schedule of the ``eps`` and ``v`` forms (Stable Diffusion's betas)."""

import numpy as np

TRAIN_STEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012


def alphas_cumprod() -> np.ndarray:
    """Cumulative product of 1 - beta, float64 ``[1000]``, falling from 0.99915 to about 0.0047.

    "Scaled linear": the square root of beta is linear in the step index.
    """
    betas = np.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_STEPS, dtype=np.float64) ** 2
    ac: np.ndarray = np.cumprod(1.0 - betas)
    return ac


def k_sigmas(ac: np.ndarray) -> np.ndarray:
    """Noise level in the alpha = 1 frame, sqrt((1 - ac) / ac), float64, same shape as ``ac``; rising, 0.029 to 14.6."""
    sigmas: np.ndarray = np.sqrt((1.0 - ac) / ac)
    return sigmas

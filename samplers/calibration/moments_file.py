"""Gaussian moments in calibrations: which tensors make which kind."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..errors import CalibrationError
from ..moments import KINDS, ChannelMoments, FourierMoments, LowRankMoments, Moments
from ..spectra import radial_spectrum
from .store import Calibration

UNCONDITIONAL = "uncond."  # before the names of the tensors that describe the model without its prompt
CHANNELS_SHOWN = 4  # in a plot, one curve each


@lru_cache(maxsize=4)
def moments_of(calibration: Calibration, *, unconditional: bool = False) -> Moments:
    """The moments in a calibration; ``unconditional``: those of the model without its prompt.

    Raises CalibrationError where they are missing or do not fit together. The last few are kept, with their eigenvectors.
    """
    tensors, kind, prefix = calibration.tensors, calibration.meta.get("kind"), UNCONDITIONAL if unconditional else ""
    try:
        if kind == "channel":
            return ChannelMoments(*(tensors[prefix + name] for name in ("mean", "covariance")))
        if kind == "fourier":
            mean, real, imag, sizes = (tensors[prefix + name] for name in ("mean", "spectrum_real", "spectrum_imag", "sizes"))
            return FourierMoments(mean, torch.complex(real, imag), tuple(sizes.tolist()))
        if kind == "lowrank":
            return LowRankMoments(*(tensors[prefix + name] for name in ("mean", "vectors", "eigenvalues", "residual")))
    except KeyError as error:
        which = "of the unconditional model " if prefix else ""
        raise CalibrationError(
            f"the calibration holds no {kind} moments {which}(no tensor {error}): measure them with the unconditional model "
            "too, or choose another mode"
        ) from None
    raise CalibrationError(f"the calibration's kind of moments is {kind!r}, expected one of {', '.join(KINDS)}")


def curves(moments: Moments) -> dict[str, list[float]]:
    """For plots: variances by spatial frequency, from the largest waves to the smallest, else from the largest eigenvalue down.

    Noise hides what has less variance than sigma^2 (sigma/alpha squared).
    """
    if not isinstance(moments, FourierMoments):
        return {"variance by direction": moments.values.sort(descending=True).values.tolist()}
    spectrum = radial_spectrum(moments.spectrum, moments.sizes)
    if spectrum.shape[1] > CHANNELS_SHOWN:
        return {"variance by frequency, mean of the channels": spectrum.mean(1).tolist()}
    return {f"variance by frequency, channel {i}": column.tolist() for i, column in enumerate(spectrum.T)}


def calibration_of(moments: Moments, unconditional: Moments | None = None, **meta: object) -> Calibration:
    """A calibration to save; ``meta`` are JSON values such as what they were measured on."""
    tensors = dict(moments.tensors())
    if unconditional is not None:
        if unconditional.kind != moments.kind:
            raise CalibrationError(f"moments of two kinds, {moments.kind} and {unconditional.kind}, do not go together")
        tensors |= {UNCONDITIONAL + name: tensor for name, tensor in unconditional.tensors().items()}
    return Calibration("moments", tensors, {**meta, "kind": moments.kind})

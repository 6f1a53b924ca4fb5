"""Which model a calibration was made for: a fingerprint that loads, devices and number formats do not change."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import CalibrationError

TENSORS = 48  # weights that are looked at, spread over the sorted names
PLACES = 8  # numbers read from each
TOLERANCE = 0.1  # relative; rounding to 8-bit floats changes the sampled numbers by up to 0.06


@dataclass(frozen=True)
class Fingerprint:
    """What tells one model from another.

    Attributes:
        architecture: digest of the weights' names and shapes.
        patches: digest of what is patched onto the weights (LoRAs and their strengths); empty for none.
        weights: sampled numbers, compared with a tolerance, since half precision rounds them.
    """

    architecture: str
    patches: str
    weights: tuple[float, ...]

    @classmethod
    def of(cls, weights: Mapping[str, Any], patches: Any = None) -> Fingerprint:
        """From a state dict (any dtype and device) and anything that JSON can write about patches.

        Reads a few hundred numbers, whatever the model's size. Raises CalibrationError for a model without weights.
        """
        names = sorted(weights)
        if not names:
            raise CalibrationError("the model has no weights to take a fingerprint of")
        shapes = [[name, list(weights[name].shape)] for name in names]
        matrices = [name for name in names if weights[name].numel() >= PLACES and weights[name].ndim >= 2] or names
        chosen = [matrices[i * len(matrices) // TENSORS] for i in range(TENSORS)] if len(matrices) > TENSORS else matrices
        numbers: list[float] = []
        for name in chosen:
            flat = weights[name].detach().reshape(-1)
            places = torch.linspace(0, flat.numel() - 1, PLACES, dtype=torch.float64).round().long()
            numbers += flat[places.to(flat.device)].to(torch.float64).cpu().tolist()
        if not all(math.isfinite(v) for v in numbers):
            raise CalibrationError("the model's weights hold NaN or infinity")
        # one scale for the whole model: float32 keeps enough digits for a tolerance of a tenth
        return cls(_digest(shapes), _digest(patches) if patches else "", tuple(float(f"{v:.6g}") for v in numbers))

    def difference(self, other: Fingerprint) -> str | None:
        """Why ``other`` is not this model, as the end of a sentence; None if it is."""
        if self.architecture != other.architecture or len(self.weights) != len(other.weights):
            return "its layers have other names or shapes"
        size = math.sqrt(sum(v * v for v in self.weights))
        apart = math.dist(self.weights, other.weights)
        if apart > TOLERANCE * max(size, 1e-12):
            return f"its weights differ by {apart / max(size, 1e-12):.0%}"
        if self.patches != other.patches:
            return "other LoRAs, or the same at other strengths, are patched onto it"
        return None

    def to_data(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Fingerprint:
        """From ``to_data``'s values."""
        return cls(str(data["architecture"]), str(data["patches"]), tuple(float(v) for v in data["weights"]))


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()

"""Noise for stochastic plans, one stream per sample: a sample's draws do not depend on its place in the batch.

A source is called with the plan's NoiseTerm and the tensor to fill. Streams are keyed by the sample's seed and by the
interval of the Brownian clock, so a schedule run in two parts draws what the whole run would have drawn.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch

from .errors import NoiseError
from .optional import torchsde
from .plan import NoiseTerm


class NoiseSource(Protocol):
    """Fills ``out`` [B, ...] with unit-variance noise for the interval of ``term`` and returns it."""

    def __call__(self, term: NoiseTerm, out: torch.Tensor) -> torch.Tensor: ...


def sample_seeds(seed: int | Sequence[int], batch: int) -> list[int]:
    """One seed per sample: ``seed, seed+1, ...`` from an integer, or the given list (its length must be ``batch``)."""
    seeds = [seed + i for i in range(batch)] if isinstance(seed, int) else [int(s) for s in seed]
    if len(seeds) != batch:
        raise NoiseError(f"{len(seeds)} seeds were given for a batch of {batch}; give one integer or one seed per sample")
    return [s % 2**64 for s in seeds]


class GivenNoise:
    """Hands out given tensors in the order in which the plan asks. Raises NoiseError when they run out."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors: Iterator[torch.Tensor] = iter(tensors)
        self.used = 0

    def __call__(self, term: NoiseTerm, out: torch.Tensor) -> torch.Tensor:
        draw = next(self._tensors, None)
        if draw is None:
            raise NoiseError(f"the plan asks for draw {self.used + 1}, but only {self.used} noise tensors were given")
        if draw.shape != out.shape:
            raise NoiseError(f"noise tensor {self.used} has shape {tuple(draw.shape)}, the state has {tuple(out.shape)}")
        self.used += 1
        return out.copy_(draw)


class GaussianNoise:
    """Independent draws, keyed by sample seed and interval. Intervals that overlap get independent draws."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._generator = torch.Generator("cpu")

    def __call__(self, term: NoiseTerm, out: torch.Tensor) -> torch.Tensor:
        _check_batch(self._seeds, out)
        interval = _rounded(term)
        for seed, sample in zip(self._seeds, out, strict=True):
            key = hashlib.blake2b(struct.pack("<Q", seed) + interval, digest_size=8, person=b"fewstep").digest()
            self._generator.manual_seed(int.from_bytes(key, "little"))
            sample.copy_(torch.randn(sample.shape, generator=self._generator))
        return out


def _rounded(term: NoiseTerm) -> bytes:
    """The interval in units of about 1/500 of its length: sigmas that differ in the last bit of a float32, as from another
    machine's arithmetic or another frame, draw the same noise, and neighbouring intervals never do.
    """
    length = 0.7 * (term.stop - term.start)  # powers of two are common lengths: they should not lie where the unit changes
    unit = max(math.frexp(length)[1] - 9, -60)
    return struct.pack("<iqq", unit, round(math.ldexp(term.start, -unit)), round(math.ldexp(term.stop, -unit)))


class BrownianNoise:
    """Increments of one Brownian path per sample (a ``torchsde.BrownianTree``): overlapping intervals are correlated,
    and runs with different numbers of steps follow the same path. Needs torchsde; the draws are made on the CPU.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._trees: list[Any] = []

    def __call__(self, term: NoiseTerm, out: torch.Tensor) -> torch.Tensor:
        _check_batch(self._seeds, out)
        if not self._trees:
            zero = torch.zeros(out.shape[1:])
            tree = torchsde().BrownianTree
            self._trees = [tree(t0=0.0, w0=zero, t1=1.0, entropy=seed, tol=1e-9) for seed in self._seeds]
        low, high = sorted((term.start, term.stop))
        scale = (1.0 if term.stop > term.start else -1.0) / (high - low) ** 0.5
        for tree, sample in zip(self._trees, out, strict=True):
            sample.copy_(tree(low, high).mul_(scale))
        return out


def _check_batch(seeds: Sequence[int], out: torch.Tensor) -> None:
    if len(seeds) != len(out):
        raise NoiseError(f"the noise source has {len(seeds)} seeds, the state a batch of {len(out)}")


def source_for(
    noise: NoiseSource | Sequence[torch.Tensor] | None, seed: int | Sequence[int] | None, batch: int,
    terms: Sequence[NoiseTerm] | None,
) -> NoiseSource | None:
    """The source that ``run`` uses: the given one, the given tensors, or one made from ``seed``.

    From a seed: independent draws, or a Brownian path where the plan's intervals overlap. ``terms`` is None where they
    are not known ahead.
    """
    if noise is not None:
        return noise if callable(noise) else GivenNoise(noise)
    if seed is None or (terms is not None and not terms):
        return None
    seeds = sample_seeds(seed, batch)
    ends = sorted((max(t.start, t.stop), min(t.start, t.stop)) for t in terms or ())
    overlap = any(later[1] < earlier[0] for earlier, later in itertools.pairwise(ends))
    return BrownianNoise(seeds) if overlap else GaussianNoise(seeds)

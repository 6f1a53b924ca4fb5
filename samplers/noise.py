"""Noise for stochastic plans, one stream per sample: a sample's draws do not depend on its place in the batch.

A source is called with the plan's NoiseTerm and the tensor to fill. Streams are keyed by the sample's seed and by the
interval of the Brownian clock, so a schedule run in two parts draws what the whole run would have drawn.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import torch

from .errors import NoiseError
from .normals import Normals, hashed
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
    """Independent draws, keyed by sample seed and interval: the same for any batch and way of splitting a schedule.

    On another device all but the last bits are the same, see ``normals``.

    Args:
        seeds: one per sample.
        cuts: times of the clock. An interval with cuts inside is the sum of its parts, so that intervals which overlap
            and end at cuts are increments of one Brownian path; otherwise overlapping intervals get independent draws.
    """

    def __init__(self, seeds: Sequence[int], cuts: Iterable[float] = ()) -> None:
        self._seeds = list(seeds)
        self._normals = Normals(self._seeds)
        self._cuts = sorted(set(cuts))

    def __call__(self, term: NoiseTerm, out: torch.Tensor) -> torch.Tensor:
        _check_batch(self._seeds, out)
        start, stop = term.start, term.stop
        length = abs(stop - start)
        edge = 1e-3 * length  # a cut so near an end is that end, reached by other arithmetic
        low, high = min(start, stop) + edge, max(start, stop) - edge
        inside = self._cuts[bisect_right(self._cuts, low) : bisect_left(self._cuts, high)]
        if not inside:
            return self._normals.fill(out, [(_key(start, stop), 1.0)])
        ends = [start, *(inside if start < stop else inside[::-1]), stop]
        return self._normals.fill(out, [(_key(a, b), math.sqrt(abs(b - a) / length)) for a, b in itertools.pairwise(ends)])


@lru_cache(maxsize=4096)  # a plan's intervals come back in every run
def _key(start: float, stop: float) -> int:
    """The stream of an interval, taken in units of about 1/500 of its length: sigmas that differ in the last bit of a float32,
    as from another machine's arithmetic or another frame, draw the same noise, and neighbouring intervals never do.
    """
    length = 0.7 * (stop - start)  # powers of two are common lengths: they should not lie where the unit changes
    unit = max(math.frexp(length)[1] - 9, -60)
    return hashed("iqq", unit, round(math.ldexp(start, -unit)), round(math.ldexp(stop, -unit)))


class BrownianNoise:
    """Increments of one Brownian path per sample: runs with different numbers of steps follow the same path.

    The path over the clock's 0..1 is Levy's sum: ``W(u) = u z + sum over dyadic intervals of their hat function at u times
    their own z``, here 24 levels deep, with the bridge inside the last one so that variances are exact. A draw costs
    about 45 independent ones; nothing is stored.
    """

    LEVELS = 24

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._normals = Normals(self._seeds)

    def __call__(self, term: NoiseTerm, out: torch.Tensor) -> torch.Tensor:
        _check_batch(self._seeds, out)
        return self._normals.fill(out, [(hashed("qq", *node), weight) for node, weight in self.weights(term).items()])

    @classmethod
    def weights(cls, term: NoiseTerm) -> dict[tuple[int, int], float]:
        """{(level, index): weight} of the path's independent normals in the unit-variance increment of ``term``.

        The weights' squares sum to 1; weighted sums of them over two terms are the increments' covariance.
        """
        stop, start = cls._path(term.stop), cls._path(term.start)
        scale = 1.0 / math.sqrt(abs(term.stop - term.start))
        weights = {node: scale * (stop.get(node, 0.0) - start.get(node, 0.0)) for node in {**start, **stop}}
        return {node: weight for node, weight in weights.items() if weight}

    @classmethod
    def _path(cls, u: float) -> dict[tuple[int, int], float]:
        """Weights of W(u)."""
        if not 0.0 <= u <= 1.0:
            raise NoiseError(f"the Brownian path has times from 0 to 1, asked for {u!r}")
        weights = {(-1, 0): u}
        for level in range(cls.LEVELS + 1):
            index = min(int(u * 2**level), 2**level - 1)
            inside = u * 2**level - index  # of the dyadic interval, 0..1
            if level < cls.LEVELS:  # the hat: standard deviation sqrt(length)/2 at the middle
                weights[level, index] = min(inside, 1.0 - inside) * 2 ** (-level / 2)
            else:
                weights[level, index] = math.sqrt(inside * (1.0 - inside)) * 2 ** (-level / 2)
        return weights


def _check_batch(seeds: Sequence[int], out: torch.Tensor) -> None:
    if len(seeds) != len(out):
        raise NoiseError(f"the noise source has {len(seeds)} seeds, the state a batch of {len(out)}")


def source_for(
    noise: NoiseSource | Sequence[torch.Tensor] | None, seed: int | Sequence[int] | None, batch: int,
    terms: Sequence[NoiseTerm] | None,
) -> NoiseSource | None:
    """The source that ``run`` uses: the given one, the given tensors, or one made from ``seed``.

    From a seed: draws that are independent, but for intervals of the plan that overlap, which are increments of one path.
    ``terms`` is None where they are not known ahead.
    """
    if noise is not None:
        return noise if callable(noise) else GivenNoise(noise)
    if seed is None or (terms is not None and not terms):
        return None
    return GaussianNoise(sample_seeds(seed, batch), (end for t in terms or () for end in (t.start, t.stop)))

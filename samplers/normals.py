"""Normal numbers by counter: number e of stream (seed, key) is a function of the three, whatever else is drawn.

The words are SplitMix64's (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), so they are the
same on every device; word i gives the numbers i and i + ceil(n/2) of a sample of n by Box and Muller's transform in
float32, where devices differ in the last bits only. On the CPU Numba's machine code does the work where that is installed and
a sample is large enough (two to four times as fast as ``torch.randn``), else numpy, on CUDA one Triton kernel, elsewhere
torch's integer operations.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .lincomb import compiled_for, kernels_for

Draw = tuple[int, float]  # key, weight
GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
_CPU_WORDS = 1 << 15  # words at a time on the CPU: the scratch stays in a core's cache
_DEVICE_WORDS = 1 << 20  # words at a time elsewhere: bounds the scratch of torch's integer operations
_TO_UNIT = 2.0**-31
_TO_ANGLE = 2.0 * math.pi * 2.0**-31


def hashed(layout: str, *values: float) -> int:
    """A 64-bit key of ``values``, packed as ``layout`` of the struct module."""
    digest = hashlib.blake2b(struct.pack("<" + layout, *values), digest_size=8, person=b"fewstep").digest()
    return int.from_bytes(digest, "little")


def mix(z: int) -> int:
    """SplitMix64's output function on an unsigned 64-bit integer."""
    z = (z ^ (z >> 30)) * MIX_1 & _MASK
    z = (z ^ (z >> 27)) * MIX_2 & _MASK
    return z ^ (z >> 31)


class Normals:
    """Fills batches with sums of normal streams, one seed per sample; owns the scratch."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = [hashed("Q", seed) for seed in seeds]
        self._cpu: _CpuScratch | None = None
        self._placed: torch.Tensor | None = None

    def fill(self, out: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
        """``out`` [B, ...] becomes ``sum_k weight_k * z(seed_b, key_k)``; any floating dtype, memory format and device."""
        if out.device.type == "cpu":
            streams = [[(mix(seed ^ key), weight) for key, weight in draws] for seed in self._seeds]
            # by the sample's size: its bits must not depend on the batch
            compiled = compiled_for(out.device, out.numel() // len(self._seeds), "normals_cpu")
            if compiled is not None and out.dtype == torch.float32 and out.is_contiguous():
                compiled.fill(out, streams)
                return out
            self._cpu = self._cpu or _CpuScratch()
            for sample, drawn in zip(out, streams, strict=True):
                self._cpu.fill(sample, drawn, compiled)
            return out
        plain = out.dtype == torch.float32 and out.is_contiguous()
        target = (out if plain else torch.empty(out.shape, dtype=torch.float32, device=out.device)).view(len(out), -1)
        if self._placed is None or self._placed.device != out.device:
            self._placed = torch.tensor([signed(seed) for seed in self._seeds]).to(out.device, non_blocking=True)
        kernels = kernels_for(target)
        add_normals = _add_normals if kernels is None else kernels.add_normals
        for k, (key, weight) in enumerate(draws):
            add_normals(target, self._placed, signed(key), weight, add=k > 0)
        return out if plain else out.copy_(target.view(out.shape))


def signed(value: int) -> int:
    """The signed 64-bit integer of the same bits as an unsigned one."""
    return value - 2**64 if value >= 2**63 else value


def _add_normals(out: torch.Tensor, seeds: torch.Tensor, key: int, weight: float, *, add: bool) -> None:
    """``out`` [B, n], float32: ``weight`` times the normals of stream (seeds[b], key), added to what is there or not."""
    n = out.shape[1]
    half = (n + 1) // 2
    streams = _mix(seeds ^ key)[:, None]
    for first in range(0, half, _DEVICE_WORDS):
        last = min(first + _DEVICE_WORDS, half)
        words = _mix(torch.arange(first + 1, last + 1, device=out.device).mul_(signed(GAMMA)) + streams)
        radius = _shifted(words, 33).float().add_(0.5).mul_(_TO_UNIT).log_().mul_(-2.0).sqrt_().mul_(weight)
        angle = words.bitwise_and_(2**31 - 1).float().mul_(_TO_ANGLE)
        for part, start in ((angle.cos(), first), (angle.sin(), half + first)):
            target = out[:, start : min(start + last - first, n)]
            drawn = part.mul_(radius)[:, : target.shape[1]]
            if add:
                target.add_(drawn)
            else:
                target.copy_(drawn)


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shifted(z, 30)) * signed(MIX_1)
    z = (z ^ _shifted(z, 27)) * signed(MIX_2)
    return z ^ _shifted(z, 31)


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """The right shift of unsigned integers, which torch only has for signed ones."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


class _CpuScratch:
    """The CPU's part of ``Normals``: arrays that are made once, for as many words as are drawn at a time."""

    def __init__(self) -> None:
        self._total = torch.empty(2, 0)
        self._counters = np.empty(0, np.uint64)

    def _grow(self, words: int) -> None:
        self._counters = np.arange(1, words + 1, dtype=np.uint64) * np.uint64(GAMMA)
        self._words, self._shifted = (np.empty(words, np.uint64) for _ in range(2))
        self._radius, self._angle = (np.empty(words, np.float32) for _ in range(2))
        self._drawn = np.empty((2, words), np.float32)
        self._result = torch.from_numpy(self._drawn)

    def fill(self, sample: torch.Tensor, streams: Sequence[tuple[int, float]], compiled: Any) -> None:
        """``sample`` becomes the sum of ``weight * z`` over (stream, weight); ``compiled`` is the module that Numba compiles."""
        n = sample.numel()
        half = (n + 1) // 2
        flat = sample.view(-1) if sample.is_contiguous() else torch.empty(n, dtype=sample.dtype)
        direct = flat.dtype == torch.float32
        size = min(half, _CPU_WORDS)
        if not direct and self._total.shape[1] < size:
            self._total = torch.empty(2, size)
        draw: Callable[..., None] = self._draw if compiled is None else compiled.draw
        for first in range(0, half, size):
            parts = flat[first : min(first + size, half)], flat[half + first : min(half + first + size, n)]
            targets = parts if direct else [total[: len(part)] for total, part in zip(self._total, parts, strict=True)]
            for k, (stream, weight) in enumerate(streams):
                draw(*targets, (stream + first * GAMMA) & _MASK, weight, k > 0)
            if not direct:
                for part, target in zip(parts, targets, strict=True):
                    part.copy_(target)
        if not sample.is_contiguous():
            sample.copy_(flat.view(sample.shape))

    def _draw(self, first: torch.Tensor, second: torch.Tensor, stream: int, weight: float, add: bool) -> None:
        """What ``normals_cpu.draw`` does, by numpy."""
        count = len(first)
        if len(self._counters) < count:
            self._grow(count)
        drawn = self._drawn[:, :count]
        word, shifted = self._words[:count], self._shifted[:count]
        radius, angle = self._radius[:count], self._angle[:count]
        np.add(self._counters[:count], np.uint64(stream), out=word)
        for bits, factor in ((30, MIX_1), (27, MIX_2), (31, None)):
            np.right_shift(word, np.uint64(bits), out=shifted)
            np.bitwise_xor(word, shifted, out=word)
            if factor is not None:
                np.multiply(word, np.uint64(factor), out=word)
        np.right_shift(word, np.uint64(33), out=shifted)
        np.bitwise_and(word, np.uint64(2**31 - 1), out=word)
        # through signed integers: their conversion is a vector instruction
        radius[:] = shifted.view(np.int64)
        angle[:] = word.view(np.int64)
        radius += np.float32(0.5)
        radius *= np.float32(_TO_UNIT)
        np.log(radius, out=radius)
        radius *= np.float32(-2.0)
        np.sqrt(radius, out=radius)
        angle *= np.float32(_TO_ANGLE)
        np.cos(angle, out=drawn[0])
        np.sin(angle, out=drawn[1])
        if weight != 1.0:
            radius *= np.float32(weight)
        drawn *= radius
        for part, target in zip(self._result, (first, second), strict=True):
            (target.add_ if add else target.copy_)(part[: len(target)])

# mypy: ignore-errors
# (Numba reads these functions; annotations would be taken for its own)
"""The streams of ``normals`` on the CPU, compiled by Numba: two numbers from each 64-bit word in one pass over the output.

Imported only for samples that are worth it (see ``lincomb.compiled_for``). Logarithm, sine and cosine are Cephes' single
precision polynomials (Moshier 1989), which compile to vector instructions; angles are reduced as integers, without error.
"""

import numpy as np
from numba import carray
from numba.core import types

from .kernels_cpu import compiled, floats
from .normals import GAMMA, MIX_1, MIX_2, signed

BLOCK = 1024  # words: the scratch stays in the first-level cache
_TO_UNIT = np.float32(2.0**-31)
_TO_ANGLE = np.float32(2.0 * np.pi * 2.0**-31)


@compiled(types.void(types.int64, types.float32[::1], types.int64, types.boolean))
def _write(place, part, count, add):
    if count <= 0:
        return
    out = carray(floats(place), (count,))
    if add:
        for i in range(count):
            out[i] += part[i]
    else:
        for i in range(count):
            out[i] = part[i]


@compiled(types.void(*[types.int64] * 5, types.float64, types.boolean))
def _draw(first_at, second_at, words, seconds, stream, weight, add):
    """The float32 numbers at two addresses become, or gain if ``add``, ``weight`` times the first and the second normal of
    each of ``words`` words of ``stream``; of the second ones only ``seconds``.

    Blocks are computed whole, so a number's bits do not depend on where the output ends.
    """
    bits, turns = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    units = carray(floats(bits.ctypes.data), (BLOCK,))  # the same memory: ``view`` would make the loops scatter
    radius, first_part, second_part = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    weight = np.float32(weight)
    for start in range(0, words, BLOCK):
        base = np.uint64(stream) + np.uint64(start + 1) * np.uint64(GAMMA)
        for i in range(BLOCK):
            z = base + np.uint64(i) * np.uint64(GAMMA)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
            z = z ^ (z >> np.uint64(31))
            units[i] = (np.float32(np.int32(z >> np.uint64(33))) + np.float32(0.5)) * _TO_UNIT
            turns[i] = np.int32(z & np.uint64(0x7FFFFFFF))
        for i in range(BLOCK):
            # the unit is mantissa * 2^exponent, mantissa from sqrt(1/2) to sqrt(2)
            shifted = np.int32(bits[i] - np.int32(0x3F3504F3))
            exponent = np.float32(np.int32(shifted >> np.int32(23)))
            bits[i] = np.int32(bits[i] - np.int32(shifted & np.int32(-0x800000)))
            f = units[i] - np.float32(1.0)
            z = f * f
            p = np.float32(7.0376836292e-2)
            p = p * f - np.float32(1.1514610310e-1)
            p = p * f + np.float32(1.1676998740e-1)
            p = p * f - np.float32(1.2420140846e-1)
            p = p * f + np.float32(1.4249322787e-1)
            p = p * f - np.float32(1.6668057665e-1)
            p = p * f + np.float32(2.0000714765e-1)
            p = p * f - np.float32(2.4999993993e-1)
            p = p * f + np.float32(3.3333331174e-1)
            p = p * f * z - np.float32(2.12194440e-4) * exponent - np.float32(0.5) * z
            log = f + p + np.float32(0.693359375) * exponent
            radius[i] = weight * np.sqrt(np.float32(-2.0) * min(log, np.float32(0.0)))
        for i in range(BLOCK):
            # the angle is a whole number of quarter turns and a rest between -1/8 and 1/8 of a turn
            quarter = np.int32(((turns[i] >> 28) + 1) >> 1)
            t = np.float32(np.int32(((turns[i] + (1 << 28)) & 0x1FFFFFFF) - (1 << 28))) * _TO_ANGLE
            z = t * t
            p = np.float32(-1.9515295891e-4) * z + np.float32(8.3321608736e-3)
            sine = (p * z - np.float32(1.6666654611e-1)) * z * t + t
            p = np.float32(2.443315711809948e-5) * z - np.float32(1.388731625493765e-3)
            cosine = (p * z + np.float32(4.166664568298827e-2)) * z * z - np.float32(0.5) * z + np.float32(1.0)
            odd = np.int32(quarter & 1) != 0
            x, y = (sine, cosine) if odd else (cosine, sine)
            first_part[i] = radius[i] * (-x if np.int32((quarter + 1) & 2) != 0 else x)
            second_part[i] = radius[i] * (-y if np.int32(quarter & 2) != 0 else y)
        _write(first_at + 4 * start, first_part, min(BLOCK, words - start), add)
        _write(second_at + 4 * start, second_part, min(BLOCK, seconds - start), add)


def fill(out, streams):
    """Each sample of ``out`` [B, ...], dense float32, becomes the sum of ``weight * z`` over its list of (stream, weight)."""
    n = out.numel() // len(streams)
    half = (n + 1) // 2
    place = out.data_ptr()
    for draws in streams:
        for k, (stream, weight) in enumerate(draws):
            _draw(place, place + 4 * half, half, n - half, signed(stream), weight, k > 0)
        place += 4 * n


def draw(first, second, stream, weight, add):
    """``first`` and ``second``, dense float32 vectors of equal length or the second one shorter, become or gain ``weight``
    times the first and second normals of the words of ``stream``, an unsigned integer.
    """
    _draw(first.data_ptr(), second.data_ptr(), len(first), len(second), signed(stream), weight, add)

# mypy: ignore-errors
# (Numba reads these functions; annotations would be taken for its own)
"""Rows on the CPU in one pass over the tensors, compiled by Numba where that is installed.

Imported only for states that are worth it (see ``lincomb.cpu_kernels_for``), since Numba takes a second to load. Works
through the tensors block by block: a block of every row is made before the next block is touched, so what several rows read
comes from memory once.
"""

import ctypes
import math

import numba
import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic

BLOCK = 2048  # float32 numbers: the sum and a few inputs stay in the first-level cache


def compiled(signature):
    """Makes machine code of a function at once, so that what fails does so while the module is imported, and keeps it on disk
    where there is a place for it. Products and sums may be fused.
    """
    options = {"nogil": True, "fastmath": {"contract"}}

    def make(function):
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # no folder to write to
            return numba.njit(signature, **options)(function)

    return make


def _pointer(kind):
    @intrinsic
    def cast(typing, address):
        def make(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), make

    return cast


floats, words = _pointer(types.float32), _pointer(types.int32)
_addresses, _doubles = _pointer(types.int64), _pointer(types.float64)


@compiled(types.boolean(*[types.int64] * 6))
def _rows(sheet, coefficients, rows, terms, watched, n):
    """Row r is the sum over its terms ``ends[r - 1]:ends[r]``; returns whether ``watched`` holds NaN or infinity.

    All are addresses but for the last and the numbers of ``rows`` and ``terms``. ``sheet`` holds ``ends``, the addresses of
    the rows' outputs, and those of all terms.
    """
    sheet, coefficients = numba.carray(_addresses(sheet), (2 * rows + terms,)), numba.carray(_doubles(coefficients), (terms,))
    ends, outs, places = sheet[:rows], sheet[rows : 2 * rows], sheet[2 * rows :]
    total = np.empty(BLOCK, np.float32)
    largest = np.int32(0)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        if watched != 0:
            bits = numba.carray(words(watched + 4 * start), (m,))
            for i in range(m):
                # the cast keeps it 32 bits wide, half the time of 64
                largest = max(largest, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
        k = 0
        for r in range(rows):
            # three terms a loop, so that the sum itself is read and written less often; the first loop takes what is left over
            x, c = numba.carray(floats(places[k] + 4 * start), (m,)), np.float32(coefficients[k])
            left_over = (ends[r] - k - 1) % 3
            if left_over == 0:
                for i in range(m):
                    total[i] = c * x[i]
            else:
                x1, c1 = numba.carray(floats(places[k + 1] + 4 * start), (m,)), np.float32(coefficients[k + 1])
                if left_over == 1:
                    for i in range(m):
                        total[i] = c1 * x1[i] + c * x[i]
                else:
                    x2, c2 = numba.carray(floats(places[k + 2] + 4 * start), (m,)), np.float32(coefficients[k + 2])
                    for i in range(m):
                        total[i] = c2 * x2[i] + (c1 * x1[i] + c * x[i])
            k += left_over + 1
            while k < ends[r]:
                x, c = numba.carray(floats(places[k] + 4 * start), (m,)), np.float32(coefficients[k])
                x1, c1 = numba.carray(floats(places[k + 1] + 4 * start), (m,)), np.float32(coefficients[k + 1])
                x2, c2 = numba.carray(floats(places[k + 2] + 4 * start), (m,)), np.float32(coefficients[k + 2])
                for i in range(m):
                    total[i] = c2 * x2[i] + (c1 * x1[i] + (c * x[i] + total[i]))
                k += 3
            out = numba.carray(floats(outs[r] + 4 * start), (m,))
            for i in range(m):
                out[i] = total[i]
    return largest >= np.int32(0x7F800000)


class Rows:
    """Rows of one run; owns the arrays in which a call is handed to the kernel, whose addresses cost nothing to pass."""

    def __init__(self):
        self._grow(32)

    def _grow(self, size):
        self._sheet, self._coefficients = (ctypes.c_int64 * size)(), (ctypes.c_double * size)()
        self._sheet_at, self._coefficients_at = map(ctypes.addressof, (self._sheet, self._coefficients))

    def combine(self, rows, watch=None):
        """Computes ``rows`` (of ``lincomb.Sum``) in order and returns True; returns False, having done nothing, where the
        kernel cannot: tensor coefficients, offsets, empty sums, tensors that are not float32 in one dense layout.

        ``watch`` is (tensor, flag), see ``lincomb.Combiner.rows``.
        """
        n = rows[0].out.numel()
        ends, outs, places, coefficients = [], [], [], []
        for terms, out, offset in rows:
            if offset is not None or not terms:
                return False
            for c, x in terms:
                if c.__class__ is not float or x.dtype is not torch.float32 or x.numel() != n or not x.is_contiguous():
                    return False
                coefficients.append(c)
                places.append(x.data_ptr())
            ends.append(len(places))
            if out.dtype is not torch.float32 or out.numel() != n or not out.is_contiguous():
                return False
            outs.append(out.data_ptr())
        sheet = ends + outs + places
        if len(sheet) > len(self._sheet):
            self._grow(2 * len(sheet))
        self._sheet[: len(sheet)], self._coefficients[: len(coefficients)] = sheet, coefficients
        watched = 0 if watch is None else watch[0].data_ptr()
        if _rows(self._sheet_at, self._coefficients_at, len(ends), len(places), watched, n):
            watch[1][0] = math.nan
        return True

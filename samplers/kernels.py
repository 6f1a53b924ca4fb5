# mypy: ignore-errors
# (Triton's compiler reads these functions; annotations would be taken for its own)
"""Triton kernels: several rows in one pass over the tensors, one row with tensor coefficients, and noise.

Imported only on CUDA (see ``lincomb.kernels_for``), since Triton compiles for the device on first use and keeps the
result. Tensors are taken in storage order, so all of a call must share one dense layout; what does not fit is refused
with None and left to torch. Sums are in float32.
"""

import contextlib
import math

import torch
import triton
import triton.language as tl

from .lincomb import place

MAX_ROWS = 3
MAX_INPUTS = 8
BLOCK = 1024
_SPECIALIZE_NOT = [f"{name}{i}" for name in ("inner", "size") for i in range(MAX_INPUTS + 1)]


@triton.jit
def _rows(
    o0, o1, o2, x0, x1, x2, x3, x4, x5, x6, x7, flag, n,
    a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7, b8, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, WATCH: tl.constexpr, BLOCK: tl.constexpr,
):
    """Row r is the sum of its eight coefficients (a, b, c) times the inputs, and of b8, c8, c9 times the rows before it."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    v = tl.load(x0 + i, mask=mask, other=0.0).to(tl.float32)
    s0, s1, s2 = a0 * v, b0 * v, c0 * v
    if WATCH:
        _watch(v, flag)
    if INPUTS > 1:
        v = tl.load(x1 + i, mask=mask, other=0.0).to(tl.float32)
        s0, s1, s2 = s0 + a1 * v, s1 + b1 * v, s2 + c1 * v
    if INPUTS > 2:
        v = tl.load(x2 + i, mask=mask, other=0.0).to(tl.float32)
        s0, s1, s2 = s0 + a2 * v, s1 + b2 * v, s2 + c2 * v
    if INPUTS > 3:
        v = tl.load(x3 + i, mask=mask, other=0.0).to(tl.float32)
        s0, s1, s2 = s0 + a3 * v, s1 + b3 * v, s2 + c3 * v
    if INPUTS > 4:
        v = tl.load(x4 + i, mask=mask, other=0.0).to(tl.float32)
        s0, s1, s2 = s0 + a4 * v, s1 + b4 * v, s2 + c4 * v
    if INPUTS > 5:
        v = tl.load(x5 + i, mask=mask, other=0.0).to(tl.float32)
        s0, s1, s2 = s0 + a5 * v, s1 + b5 * v, s2 + c5 * v
    if INPUTS > 6:
        v = tl.load(x6 + i, mask=mask, other=0.0).to(tl.float32)
        s0, s1, s2 = s0 + a6 * v, s1 + b6 * v, s2 + c6 * v
    if INPUTS > 7:
        v = tl.load(x7 + i, mask=mask, other=0.0).to(tl.float32)
        s0, s1, s2 = s0 + a7 * v, s1 + b7 * v, s2 + c7 * v
    # every input has been read: an output may be one of them. Later rows see what was stored, rounding included.
    y0 = s0.to(o0.dtype.element_ty)
    tl.store(o0 + i, y0, mask=mask)
    if ROWS > 1:
        y1 = (s1 + b8 * y0.to(tl.float32)).to(o1.dtype.element_ty)
        tl.store(o1 + i, y1, mask=mask)
        if ROWS > 2:
            y2 = (s2 + c8 * y0.to(tl.float32) + c9 * y1.to(tl.float32)).to(o2.dtype.element_ty)
            tl.store(o2 + i, y2, mask=mask)


@triton.jit
def _watch(v, flag):
    """Leaves NaN in ``flag`` if v holds NaN or infinity; programs that race write the same."""
    bad = tl.sum(v * 0.0, axis=0)
    tl.store(flag, bad, mask=bad != 0.0)


@triton.jit(do_not_specialize=_SPECIALIZE_NOT)
def _tensor_row(
    out, x0, x1, x2, x3, x4, x5, x6, x7, n, a0, a1, a2, a3, a4, a5, a6, a7,
    t0, t1, t2, t3, t4, t5, t6, t7, t8,
    inner0, inner1, inner2, inner3, inner4, inner5, inner6, inner7, inner8,
    size0, size1, size2, size3, size4, size5, size6, size7, size8,
    INPUTS: tl.constexpr, TENSORS: tl.constexpr, BLOCK: tl.constexpr,
):
    """One row; bit k of TENSORS says that term k has the coefficients t_k[(i // inner_k) % size_k], bit 8 the offset."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    total = _term(x0, a0, t0, inner0, size0, i, mask, TENSORS & 1)
    if INPUTS > 1:
        total += _term(x1, a1, t1, inner1, size1, i, mask, TENSORS & 2)
    if INPUTS > 2:
        total += _term(x2, a2, t2, inner2, size2, i, mask, TENSORS & 4)
    if INPUTS > 3:
        total += _term(x3, a3, t3, inner3, size3, i, mask, TENSORS & 8)
    if INPUTS > 4:
        total += _term(x4, a4, t4, inner4, size4, i, mask, TENSORS & 16)
    if INPUTS > 5:
        total += _term(x5, a5, t5, inner5, size5, i, mask, TENSORS & 32)
    if INPUTS > 6:
        total += _term(x6, a6, t6, inner6, size6, i, mask, TENSORS & 64)
    if INPUTS > 7:
        total += _term(x7, a7, t7, inner7, size7, i, mask, TENSORS & 128)
    if TENSORS & 256:
        total += tl.load(t8 + (i // inner8) % size8, mask=mask, other=0.0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _term(x, a, t, inner, size, i, mask, TENSOR: tl.constexpr):
    v = tl.load(x + i, mask=mask, other=0.0).to(tl.float32)
    if TENSOR:
        a = tl.load(t + (i // inner) % size, mask=mask, other=0.0)
    return v * a


@triton.jit
def _mix(z):
    """SplitMix64's output function."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit(do_not_specialize=["key"])
def _normals(out, seeds, key, weight, n, half, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """Adds ``weight * z`` to row ``program_id(1)`` of out [B, n]; see ``normals``."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    stream = _mix(tl.load(seeds + b).to(tl.uint64, bitcast=True) ^ key.to(tl.int64).to(tl.uint64, bitcast=True))
    word = _mix(stream + (i + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)
    u = ((word >> 33).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2^-31
    angle = (word & 0x7FFFFFFF).to(tl.int32).to(tl.float32) * 2.9258361585343192e-09  # 2 pi 2^-31
    radius = weight * tl.sqrt(-2.0 * tl.log(u))
    first, second = radius * tl.cos(angle), radius * tl.sin(angle)
    low, high = out + b * n + i, out + b * n + half + i
    if ADD:
        first += tl.load(low, mask=i < half, other=0.0)
        second += tl.load(high, mask=half + i < n, other=0.0)
    tl.store(low, first, mask=i < half)
    tl.store(high, second, mask=(i < half) & (half + i < n))


def combine(rows, watch=None):
    """Computes ``rows`` (of ``lincomb.Sum``) in one launch and returns True; returns False, having done nothing, where
    the kernels cannot: tensor coefficients in several rows at once or watched, more than 8 inputs or 3 rows, unlike layouts.

    ``watch`` is (tensor, flag), see ``lincomb.Combiner.rows``.
    """
    if any(isinstance(c, torch.Tensor) for row in rows for c, _ in row.terms) or any(row.offset is not None for row in rows):
        return len(rows) == 1 and watch is None and _combine_tensors(rows[0])
    if len(rows) > MAX_ROWS:
        return False
    inputs = [] if watch is None else [watch[0]]
    places, written = {id(x): k for k, x in enumerate(inputs)}, {}  # of tensors, among the inputs and the rows before
    table = [[0.0] * (MAX_INPUTS + r) for r in range(MAX_ROWS)]
    for r, row in enumerate(rows):
        for c, x in row.terms:
            earlier = written.get(id(x))
            if earlier is not None:
                table[r][MAX_INPUTS + earlier] += float(c)
                continue
            k = places.setdefault(id(x), len(inputs))
            if k == len(inputs):
                inputs.append(x)
            if k < MAX_INPUTS:
                table[r][k] += float(c)
        written[id(row.out)] = r
    out = rows[0].out
    if not 0 < len(inputs) <= MAX_INPUTS or not _alike([*inputs, *(row.out for row in rows)]):
        return False
    outs = [row.out for row in rows] + [out] * (MAX_ROWS - len(rows))
    xs = inputs + [out] * (MAX_INPUTS - len(inputs))
    with _on(out):
        _rows[(triton.cdiv(out.numel(), BLOCK),)](
            *outs, *xs, out if watch is None else watch[1], out.numel(), *table[0], *table[1], *table[2],
            INPUTS=len(inputs), ROWS=len(rows), WATCH=watch is not None, BLOCK=BLOCK,
        )
    return True


def _combine_tensors(row):
    xs = [x for _, x in row.terms]
    out = row.out
    values = [*(c for c, _ in row.terms), *[0.0] * (MAX_INPUTS - len(xs)), row.offset]
    if not 0 < len(xs) <= MAX_INPUTS or not _alike([*xs, out]):
        return False
    scalars, tensors, inners, sizes, bits = [], [], [], [], 0
    for k, c in enumerate(values):
        layout = (1, 1)
        if isinstance(c, torch.Tensor):
            layout = _layout(c.shape, out.shape)
            if layout is None:
                return False
            bits |= 1 << k
        scalars.append(0.0 if isinstance(c, torch.Tensor) or c is None else c)
        tensors.append(place(c, out).contiguous() if isinstance(c, torch.Tensor) else out)
        inners.append(layout[0])
        sizes.append(layout[1])
    with _on(out):
        _tensor_row[(triton.cdiv(out.numel(), BLOCK),)](
            out, *xs, *[out] * (MAX_INPUTS - len(xs)), out.numel(), *scalars[:MAX_INPUTS], *tensors, *inners, *sizes,
            INPUTS=len(xs), TENSORS=bits, BLOCK=BLOCK,
        )
    return True


def _layout(shape, full):
    """(inner, size) with element i of the full tensor taking coefficient ``(i // inner) % size``, or None."""
    shape = (1,) * (len(full) - len(shape)) + tuple(shape)
    used = [d for d, s in enumerate(shape) if s > 1]
    if not used:
        return 1, 1
    first, last = used[0], used[-1]
    if tuple(shape[first : last + 1]) != tuple(full[first : last + 1]):
        return None
    return math.prod(full[last + 1 :]), math.prod(full[first : last + 1])


def add_normals(out, seeds, key, weight, *, add):
    """``out`` [B, n], float32: ``weight`` times the normals of stream (seeds[b], key), added to what is there or not."""
    n = out.shape[1]
    half = (n + 1) // 2
    with _on(out):
        _normals[(triton.cdiv(half, BLOCK), len(out))](out, seeds, key, weight, n, half, ADD=add, BLOCK=BLOCK)


def _alike(tensors):
    first = tensors[0]
    return all(t.shape == first.shape and t.dtype == first.dtype and t.is_contiguous() for t in tensors)


def _on(tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()

"""The linear combination against float64 numpy: every precision, layout, aliasing and kind of coefficient."""

import types

import numpy as np
import pytest
import torch
from fewstep.samplers import lincomb
from fewstep.samplers.lincomb import CPU_BLOCK, Combiner, Sum

EPS = {torch.float64: 2.3e-16, torch.float32: 1.2e-7, torch.bfloat16: 7.9e-3, torch.float16: 9.8e-4}


def draw(shape, dtype, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(terms, offset=None):
    """The sum and the sum of magnitudes in float64, by numpy."""
    parts = [(c.double().numpy() if isinstance(c, torch.Tensor) else c) * x.double().numpy() for c, x in terms]
    parts += [] if offset is None else [np.broadcast_to(offset.double().numpy(), parts[0].shape)]
    return sum(parts), sum(np.abs(part) for part in parts)


def check(terms, out, offset=None, combine=None):
    """Runs the row; each element may be off by the rounding of its own terms, and of the result to the state's precision."""
    wanted, size = exact(terms, offset)
    result = (combine or Combiner(out))(terms, out, offset)
    assert result is out
    wide = EPS[torch.float64 if out.dtype == torch.float64 else torch.float32]
    error = np.abs(out.double().numpy() - wanted)
    assert (error <= 3 * wide * size + EPS[out.dtype] / 2 * np.abs(wanted) + 1e-7 * (out.dtype == torch.float16)).all()


@pytest.mark.parametrize("dtype", list(EPS), ids=str)
@pytest.mark.parametrize("count", range(1, 9))
def test_sums_of_one_to_eight_tensors(dtype, count):
    coefficients = [0.31, -1.7, 2.4, 0.05, -0.6, 1.1, 0.9, -0.2][:count]
    terms = [(c, draw((2, 4, 8, 8), dtype, i)) for i, c in enumerate(coefficients)]
    check(terms, torch.full((2, 4, 8, 8), torch.nan, dtype=dtype))
    check(terms, terms[-1][1].clone())
    for place in {0, count // 2, count - 1}:  # in place, wherever the target stands among the terms
        aliased = [(c, x.clone()) for c, x in terms]
        check(aliased, aliased[place][1])


@pytest.mark.parametrize("dtype", list(EPS), ids=str)
@pytest.mark.parametrize("coefficients", [
    (0.25, 0.75), (1 / 3, 1 - 1 / 3), (7.5, -6.5), (-1e-4, 1.0001), (0.2, 0.5, 0.3), (0.05, 1.4, -0.45), (1.0, -0.9996, 0.9996),
])
def test_means_are_as_exact_as_sums(dtype, coefficients):
    """Rows whose coefficients sum to 1 take another way; the error bound is the same."""
    terms = [(c, draw((3, 4, 16), dtype, i)) for i, c in enumerate(coefficients)]
    check(terms, torch.empty(3, 4, 16, dtype=dtype))
    check(terms, terms[0][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 1), (1,), (3, 4, 6), (4, 6), (2, 1, 1, 1), (2, 3, 4, 6)], ids=str)
def test_tensor_coefficients_and_offsets(dtype, shape):
    c = draw(shape, torch.float32, 7)
    x, m = draw((2, 3, 4, 6), dtype, 0), draw((2, 3, 4, 6), dtype, 1)
    check([(0.5, x), (c, m)], torch.empty_like(x), offset=draw(shape[-3:], torch.float32, 8))
    check([(c, x), (0.5, m)], m.clone())
    check([(c, x), (-2.0, m), (c, m)], x)


def test_tensors_that_are_not_plain_lists_of_numbers():
    for dtype in EPS:
        x = draw((2, 4, 8, 8), dtype, 0).to(memory_format=torch.channels_last)
        m, half = draw((2, 4, 8, 8), dtype, 1), draw((2, 4, 8, 16), dtype, 2)[..., ::2]
        check([(0.5, x), (2.0, m), (-0.25, half)], torch.empty_like(x))
        check([(0.5, m), (2.0, x)], m)


def test_one_run_may_mix_plain_tensors_and_others():
    for dtype in EPS:
        x, m = (draw((2, 4, 8, 8), dtype, i) for i in range(2))
        last = m.to(memory_format=torch.channels_last)
        combine = Combiner(x)
        for terms in ([(0.5, x), (2.0, m)], [(0.5, x), (2.0, last)], [(0.5, m), (2.0, x)]):
            check(terms, torch.empty_like(x), combine=combine)
            check(terms, torch.empty_like(last), combine=combine)


def test_16_bit_states_longer_than_a_block():
    x, m = (draw((1, 2 * CPU_BLOCK + 77), torch.bfloat16, i) for i in range(2))
    check([(0.3, x), (1.9, m)], x)


def test_triton_is_tried_once_before_it_is_relied_on(monkeypatch, caplog):
    """An old GPU, or no C compiler: Triton loads and then fails at the first launch."""
    tries = []

    def combine(rows, watch=None):
        tries.append(rows)
        raise RuntimeError("Failed to find C compiler")

    like = types.SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device("cpu"))
    monkeypatch.setattr(torch.version, "hip", None)
    kernels = types.SimpleNamespace(combine=combine)
    monkeypatch.setattr(lincomb, "kernel_module", lambda name: kernels)
    for works in (False, True):
        lincomb._triton_serves.cache_clear()
        for _ in range(3):
            assert lincomb.kernels_for(like) is (kernels if works else None)
        kernels.combine = lambda rows, watch=None: True
    assert len(tries) == 1 and caplog.text.count("Failed to find C compiler") == 1
    monkeypatch.setattr(lincomb, "kernel_module", lambda name: None)
    lincomb._triton_serves.cache_clear()
    assert lincomb.kernels_for(like) is None
    lincomb._triton_serves.cache_clear()


def test_an_empty_sum_is_zero():
    assert Combiner(torch.ones(4))([], torch.full((4,), torch.nan)).tolist() == [0.0] * 4


def test_a_later_row_reads_what_an_earlier_one_wrote():
    x, d, y = (draw((2, 50), torch.float64, i) for i in range(3))
    m = torch.empty_like(x)
    wanted_m = 2 * x - 3 * d
    wanted_x = 0.5 * x + 0.25 * wanted_m
    wanted_y = wanted_x - wanted_m + 0.125 * d
    assert Combiner(x).rows([
        Sum([(2.0, x), (-3.0, d)], m), Sum([(0.5, x), (0.25, m)], x), Sum([(1.0, x), (-1.0, m), (0.125, d)], y),
    ], (d, torch.zeros(()))) is False
    for tensor, wanted in ((m, wanted_m), (x, wanted_x), (y, wanted_y)):
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("coefficients", [(0.4, 0.6), (0.3, 0.2, 0.5), (0.4, -1.2, 0.3, 2.0)], ids=str)
def test_an_element_does_not_depend_on_its_place(coefficients):
    """The same bits wherever a sample stands in a batch: vector and scalar code must round alike."""
    xs = [draw((3001,), torch.float32, i) for i in range(len(coefficients))]
    whole = Combiner(xs[0])(list(zip(coefficients, xs, strict=True)), torch.empty(3001))
    for start in range(0, 3000, 11):
        parts = [x[start : start + 7].clone() for x in xs]
        assert torch.equal(Combiner(parts[0])(list(zip(coefficients, parts, strict=True)), parts[0]), whole[start : start + 7])

"""The kernel that Numba compiles for the CPU: against float64 numpy, against torch's operations, and what it leaves to them."""

import math
import threading

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="Numba is not installed (pip install numba)")

from fewstep.samplers import frames, grids, kernels_cpu, lincomb, make_plan, run
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.errors import DenoiserError
from fewstep.samplers.lincomb import Combiner, Sum

COEFFICIENTS = [0.31, -1.7, 2.4, 0.05, -0.6, 1.1, 0.9, -0.2, 0.7, -0.4]
SHAPE = (2, 3, 47, 31)  # three blocks and a rest
FRAME = frames.linear_vp().unit_alpha()
MODEL = GaussianMixture.make(3).denoiser(FRAME, 2.0)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The kernel serves states of any size; its calls are counted as the numbers of rows."""
    monkeypatch.setattr(lincomb, "CPU_LEAST", 1)
    done = []
    original = kernels_cpu.Rows.combine

    def combine(self, rows, watch=None):
        served = original(self, rows, watch)
        done.append(len(rows) if served else "left")
        return served

    monkeypatch.setattr(kernels_cpu.Rows, "combine", combine)
    return done


def draw(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", range(1, 11))
@pytest.mark.parametrize("shape", [(1, 1), (1, 2047), (3, 2048), (5, 1311), SHAPE], ids=str)
def test_one_row_of_one_to_ten_tensors(count, shape, calls):
    coefficients, xs = COEFFICIENTS[:count], [draw(i, shape) for i in range(count)]
    parts = [c * x.double().numpy() for c, x in zip(coefficients, xs, strict=True)]
    wanted, bound = sum(parts), 3 * 1.2e-7 * sum(np.abs(part) for part in parts)
    for target in (torch.full(shape, torch.nan), xs[-1].clone(), *xs[:1]):
        terms = [(c, target if target.equal(x) else x) for c, x in zip(coefficients, xs, strict=True)]
        result = Combiner(target)(terms, target)
        assert (np.abs(result.double().numpy() - wanted) <= bound).all()
    assert calls == [1, 1, 1]


def test_later_rows_read_what_earlier_ones_wrote(calls):
    x, d, old, y = (draw(i) for i in range(4))
    m = torch.empty_like(x)
    wide = [t.double() for t in (x, d, old, y)]
    wanted_m = 2 * wide[3] - 3 * wide[1]
    wanted_x = 0.5 * wide[0] + 0.25 * wanted_m + 0.125 * wide[2]
    wanted_y = 1.5 * wanted_x - wanted_m + 0.5 * wide[2]
    flag = [0.0]
    assert Combiner(x).rows([
        Sum([(2.0, y), (-3.0, d)], m), Sum([(0.5, x), (0.25, m), (0.125, old)], x), Sum([(1.5, x), (-1.0, m), (0.5, old)], y),
    ], (d, flag)) is True
    assert calls == [3] and flag == [0.0]
    for tensor, wanted in ((m, wanted_m), (x, wanted_x), (y, wanted_y)):
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 2048, 4999])
def test_the_watched_tensor_leaves_a_mark(value, place):
    x, d, flag = draw(0, (1, 5000)), draw(1, (1, 5000)), [0.0]
    d[0, place] = 3.4e38  # the largest finite numbers are no reason
    assert Combiner(x).rows([Sum([(1.0, x), (1e-30, d)], x)], (d, flag)) and flag == [0.0]
    d[0, place] = value
    assert Combiner(x).rows([Sum([(1.0, x), (0.5, d)], x)], (d, flag)) and math.isnan(flag[0])
    other = [0.0]
    assert Combiner(x).rows([Sum([(1.0, x)], x)], (d, other)) and math.isnan(other[0]), "no row needs to read it"


@pytest.mark.parametrize("count", range(1, 8))
def test_an_element_does_not_depend_on_its_place(count):
    """The same bits wherever a sample stands in a batch: vector and scalar code round alike."""
    xs = [draw(i, (3001,)) for i in range(count)]
    whole = Combiner(xs[0])(list(zip(COEFFICIENTS, xs, strict=False)), torch.empty(3001))
    for start in range(0, 3000, 11):
        parts = [x[start : start + 7].clone() for x in xs]
        assert torch.equal(Combiner(parts[0])(list(zip(COEFFICIENTS, parts, strict=False)), parts[0]), whole[start : start + 7])


def test_what_the_kernel_leaves_to_torch(calls):
    x, m = draw(0), draw(1)
    half = draw(2, (2, 3, 47, 62))[..., ::2]
    channels_last = draw(3).to(memory_format=torch.channels_last)
    single = draw(4, (1, 3, 47, 31))
    cases = [
        [(torch.tensor(0.5), x), (2.0, m)], [(0.5, x), (2.0, half)], [(0.5, x), (2.0, channels_last)], [(0.5, x), (2.0, single)],
        [(0.5, x), (2.0, m.half())],
    ]
    for terms in cases:
        wanted = sum(c * t.double() for c, t in terms)
        torch.testing.assert_close(Combiner(x)(terms, torch.empty_like(x)).double(), wanted, rtol=1e-6, atol=1e-6)
    assert not Combiner(x)([], torch.full_like(x, torch.nan)).any()
    torch.testing.assert_close(Combiner(x)([(2.0, x)], torch.empty_like(x), torch.ones(31)), 2 * x + 1)
    out = torch.empty(2, 3, 31, 47).transpose(2, 3)
    torch.testing.assert_close(Combiner(x)([(2.0, x)], out), 2 * x)
    assert set(calls) == {"left"}


def test_gradients_go_through_torch(calls):
    weight = draw(1).requires_grad_()
    out = Combiner(weight)([(0.5, weight.detach() * 0), (3.0, weight)], torch.zeros(SHAPE))
    out.sum().backward()
    assert torch.equal(weight.grad, torch.full(SHAPE, 3.0)) and not calls
    with torch.no_grad():
        Combiner(weight)([(3.0, weight)], torch.zeros(SHAPE))
    assert calls == [1]


SOLVERS = [
    ("ddim", {}), ("ddim", {"eta": 1.0}), ("dpm_solver_multistep", {"order": 3}), ("unipc", {"order": 3}), ("ipndm", {"order": 4}),
    ("deis_ab", {"ab_order": 3}), ("dpm_solver_singlestep", {"order": 3}), ("dpm_solver_sde_multistep", {"order": 2}),
]


@pytest.mark.parametrize(("name", "options"), SOLVERS, ids=str)
def test_whole_runs(name, options, calls, monkeypatch):
    """As near to a float64 run as torch's operations in float32 are, and one call a stage."""
    plan = make_plan(name, FRAME, grids.karras(FRAME, 9, end="zero"), **options)
    x = 80.0 * draw(5, (2, 4, 16, 16))

    def denoiser(y, sigma):
        return MODEL(y.double(), sigma.double()).to(y.dtype)

    fast = run(plan, denoiser, x, seed=3)
    assert "left" not in calls and len(calls) <= plan.nfe + 2
    count = len(calls)
    monkeypatch.setattr(lincomb, "cpu_kernels_for", lambda like: None)
    chain = run(plan, denoiser, x, seed=3)
    assert len(calls) == count
    torch.testing.assert_close(fast, chain, rtol=2e-5, atol=2e-5)


def test_a_prediction_that_is_not_finite_is_named():
    plan = make_plan("dpm_solver_multistep", FRAME, grids.karras(FRAME, 8, end="zero"), order=2)
    with pytest.raises(DenoiserError, match="evaluation 5"):
        run(plan, lambda y, s: y * (torch.nan if float(s[0]) < 1.01 * plan.nodes[5].sigma else 0.5), draw(0))


def test_threads_do_not_disturb_each_other():
    plan = make_plan("unipc", FRAME, grids.karras(FRAME, 8, end="zero"), order=3)
    wanted = [run(plan, lambda y, s: y * 0.5, draw(i)) for i in range(4)]
    found = [None] * 4

    def work(i):
        for _ in range(5):
            found[i] = run(plan, lambda y, s: y * 0.5, draw(i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_which_states_it_serves(monkeypatch):
    monkeypatch.setattr(lincomb, "CPU_LEAST", 1 << 14)
    assert lincomb.cpu_kernels_for(torch.zeros(1, 4, 64, 64)) is kernels_cpu.Rows
    assert lincomb.cpu_kernels_for(torch.zeros(1, 4, 64, 63)) is None  # not worth a second of loading
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert lincomb.cpu_kernels_for(torch.zeros(1, 4, 64, 64, dtype=dtype)) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert lincomb.cpu_kernels_for(torch.zeros(1, 4, 128, 128)) is kernels_cpu.Rows
    assert lincomb.cpu_kernels_for(torch.zeros(1, 16, 128, 128)) is None  # torch's threads are faster


def test_without_numba_torch_does_the_work(monkeypatch):
    def missing(name, package):
        raise ImportError(name)

    lincomb.kernel_module.cache_clear()
    monkeypatch.setattr(lincomb.importlib, "import_module", missing)
    try:
        assert lincomb.cpu_kernels_for(draw(0)) is None and not Combiner(draw(0)).fused
    finally:
        lincomb.kernel_module.cache_clear()

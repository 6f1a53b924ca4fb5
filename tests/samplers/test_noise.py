"""Noise: the generator's published words, the law of the numbers, and what streams are keyed by."""

import itertools
import math

import numpy as np
import pytest
import torch
from fewstep.samplers import BrownianNoise, GaussianNoise, frames, grids, lincomb, make_plan, normals, run
from fewstep.samplers.errors import NoiseError
from fewstep.samplers.noise import source_for
from fewstep.samplers.plan import NoiseTerm
from scipy import stats

TERM = NoiseTerm(1.0, 0.9, 0.5)


@pytest.fixture(params=["numba", "numpy"])
def way(request, monkeypatch):
    """The two ways on the CPU, for samples of any size."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="Numba is not installed (pip install numba)")
    monkeypatch.setattr(lincomb, "CPU_LEAST", 1 if request.param == "numba" else 1 << 60)
    return request.param


def fill(seeds, shape, draws=((5, 1.0),), dtype=torch.float32):
    return normals.Normals(seeds).fill(torch.empty(len(seeds), *shape, dtype=dtype), draws)


def test_the_words_are_splitmix64s():
    """The first outputs from state 1234567, as the public reference implementation prints them."""
    words = [normals.mix((1234567 + k * normals.GAMMA) % 2**64) for k in range(1, 6)]
    assert words == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 70_001, 140_000])
def test_numbers_are_box_and_mullers_of_the_words(n, way):
    """By Python integers and float64 numpy, and the same on the way that other devices take."""
    seeds, draws = [3, 2**64 - 1], ((12345, 1.0), (2**63 + 77, -0.5))
    drawn = fill(seeds, (n,), draws)
    half = (n + 1) // 2
    for b, seed in enumerate(seeds):
        wanted = np.zeros(n)
        for key, weight in draws:
            stream = normals.mix(normals.hashed("Q", seed) ^ key)
            words = [normals.mix((stream + (i + 1) * normals.GAMMA) % 2**64) for i in range(half)]
            radius = np.sqrt(-2 * np.log((np.array([w >> 33 for w in words]) + 0.5) * 2.0**-31))
            angle = 2 * np.pi * np.array([w % 2**31 for w in words]) * 2.0**-31
            wanted += weight * np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]
        np.testing.assert_allclose(drawn[b], wanted, rtol=0, atol=4e-6)
    other, placed = torch.full((2, n), torch.nan), torch.tensor([normals.signed(normals.hashed("Q", s)) for s in seeds])
    for k, (key, weight) in enumerate(draws):
        normals._add_normals(other, placed, normals.signed(key), weight, add=k > 0)
    torch.testing.assert_close(other, drawn, rtol=0, atol=4e-6)


def test_the_numbers_are_normal_and_independent(way):
    drawn = fill([1, 2], (200_000,), ((5, 1.0),))
    other = fill([1, 2], (200_000,), ((6, 1.0),))
    for sample in (*drawn.double().numpy(), *other.double().numpy()):
        assert stats.kstest(sample, "norm").pvalue > 1e-3
        assert abs(stats.skew(sample)) < 0.025 and abs(stats.kurtosis(sample)) < 0.05
    bound = 4.5 / math.sqrt(200_000)
    z = drawn[0].double()
    for a, b in ((drawn[0], drawn[1]), (drawn[0], other[0]), (z[:100_000], z[100_000:]), (z[1:], z[:-1]), (z[1:] ** 2, z[:-1] ** 2 - 1)):
        assert abs(float((a.double() * b.double()).mean())) < 2 * bound
    assert not torch.isinf(drawn).any() and float(drawn.abs().max()) > 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("draws", [((5, 1.0),), ((5, 0.6), (6, -0.8))], ids=["one", "two"])
@pytest.mark.parametrize("shape", [(3, 6, 6), (3, 7, 15), (5, 200, 131)], ids=str)  # the last one in three pieces
def test_precision_and_layout_change_nothing(dtype, shape, draws, way):
    plain = fill([4, 5], shape, draws)
    assert torch.equal(fill([4, 5], shape, draws, dtype=dtype), plain.to(dtype))
    strided = torch.empty(2, *shape).to(memory_format=torch.channels_last)
    assert torch.equal(normals.Normals([4, 5]).fill(strided, draws), plain)


@pytest.mark.parametrize("n", [5, 256, 70_001])
def test_a_sample_does_not_depend_on_its_batch(n, way):
    together = GaussianNoise([7, 8, 9])(TERM, torch.empty(3, n))
    assert torch.equal(together, GaussianNoise([7, 8, 9])(TERM, torch.empty(3, n)))
    for i in range(3):
        assert torch.equal(GaussianNoise([7 + i])(TERM, torch.empty(1, n))[0], together[i])


def test_which_way_is_taken_depends_on_the_sample_alone(monkeypatch):
    """A sample just too small for Numba does not become large enough in a batch."""
    pytest.importorskip("numba", reason="Numba is not installed (pip install numba)")
    n = 6000
    monkeypatch.setattr(lincomb, "CPU_LEAST", n + 1)
    alone, together = fill([9], (n,)), fill([7, 8, 9], (n,))
    monkeypatch.setattr(lincomb, "CPU_LEAST", n)
    compiled = fill([9], (n,))
    assert torch.equal(together[2], alone[0]) and not torch.equal(compiled, alone)
    torch.testing.assert_close(compiled, alone, rtol=0, atol=4e-6)


def test_the_rarest_words_give_finite_numbers():
    """Logarithm and angle at the ends of their ranges, against float64: words are made for it by running SplitMix64 backwards."""
    normals_cpu = pytest.importorskip("fewstep.samplers.normals_cpu", reason="Numba is not installed (pip install numba)")
    top = 2**31 - 1
    for high in (0, 1, 2, 2**23, 2**24 + 1, 2**30, top - 64, top):
        for low in (0, 1, *(k * 2**28 + d for k in range(1, 8) for d in (-1, 0, 1)), top):
            first, second = torch.empty(1), torch.empty(1)
            normals_cpu.draw(first, second, (unmix(high << 33 | low) - normals.GAMMA) % 2**64, 1.0, False)
            unit = float((np.float32(high) + np.float32(0.5)) * np.float32(2.0**-31))  # rounded as the numbers are
            radius, angle = math.sqrt(-2 * math.log(unit)), 2 * math.pi * low * 2.0**-31
            assert first.item() == pytest.approx(radius * math.cos(angle), abs=2e-6), (high, low)
            assert second.item() == pytest.approx(radius * math.sin(angle), abs=2e-6), (high, low)


def unmix(word):
    """The state that SplitMix64's output function turns into ``word``."""
    for bits, factor in ((31, normals.MIX_2), (27, normals.MIX_1), (30, 1)):
        value = word
        for _ in range(3):  # undoes value ^= value >> bits
            value = word ^ value >> bits
        word = value * pow(factor, -1, 2**64) % 2**64
    return word


def test_gaussian_noise_is_keyed_by_interval_and_apart_from_the_start_noise():
    source = GaussianNoise([3])
    a, b, again = (source(t, torch.empty(1, 4000)).clone() for t in (TERM, NoiseTerm(1.0, 0.5, 0.1), TERM))
    nearly = source(NoiseTerm(1.0, 0.9 + 1e-14, 0.5 - 1e-14), torch.empty(1, 4000))
    assert torch.equal(a, again) and torch.equal(a, nearly)
    start = torch.randn(1, 4000, generator=torch.Generator().manual_seed(3))
    assert abs(float((a * b).mean())) < 0.07 and abs(float((a * start).mean())) < 0.07
    with pytest.raises(NoiseError, match="1 seeds, the state a batch of 2"):
        source(TERM, torch.empty(2, 3))


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 10, 20, 50])
@pytest.mark.parametrize("share", [-1e-7, 1e-7])
def test_the_last_bit_of_a_sigma_does_not_change_the_noise(steps, share):
    """Another machine's float32 sigmas give the same picture."""
    source, edges = GaussianNoise([3]), np.linspace(1.0, 0.0, steps + 1)
    for a, b in itertools.pairwise(edges):
        exact, off = (source(NoiseTerm(1.0, a * k, b), torch.empty(1, 4)).clone() for k in (1.0, 1.0 + share))
        assert torch.equal(exact, off), (a, b)


def test_neighbouring_intervals_never_draw_the_same():
    source, edges = GaussianNoise([3]), np.geomspace(0.9, 1e-4, 5001)
    draws = {tuple(source(NoiseTerm(1.0, a, b), torch.empty(1, 3))[0].tolist()) for a, b in itertools.pairwise(edges)}
    assert len(draws) == 5000


def test_intervals_that_overlap_are_parts_of_one_path():
    """With cuts at 0.9, 0.5 and 0.1 the whole is the exact sum of its parts, and the parts are what they are without cuts."""
    source = GaussianNoise([3, 4], cuts=(0.9, 0.5, 0.1))
    whole, first, second = (
        source(NoiseTerm(1.0, a, b), torch.empty(2, 5000)).clone() * math.sqrt(a - b) for a, b in ((0.9, 0.1), (0.9, 0.5), (0.5, 0.1))
    )
    torch.testing.assert_close(first + second, whole, rtol=0, atol=1e-6)
    assert torch.equal(source(TERM, torch.empty(2, 5000)), GaussianNoise([3, 4])(TERM, torch.empty(2, 5000)))


def test_a_plan_with_inner_stages_draws_one_path():
    """The two draws of a step of the singlestep SDE share their first part: correlation sqrt(share of the clock)."""
    frame = frames.edm()
    plan = make_plan("dpm_solver_sde_singlestep", frame, grids.karras(frame, 3, end="zero", t_T=14.6, t_0=0.03))
    terms = [row.noise for row in plan.rows() if row.noise is not None]
    inner, outer = terms[:2]
    assert inner.start == outer.start and inner.stop > outer.stop
    source = source_for(None, 11, 1, terms)
    a, b = (source(t, torch.empty(1, 100_000)).double().clone() for t in (inner, outer))
    wanted = math.sqrt((inner.start - inner.stop) / (outer.start - outer.stop))
    assert 0.5 < wanted < 0.99 and abs(float((a * b).mean()) - wanted) < 0.02


@pytest.mark.parametrize("terms", [
    ((0.9, 0.1), (0.9, 0.1)), ((0.9, 0.5), (0.5, 0.1)), ((0.8, 0.3), (0.6, 0.2)), ((1.0, 0.25), (0.7, 0.0)), ((0.31, 0.30), (0.9, 0.1)),
    ((0.001, 0.00099), (0.5, 0.0001)), ((0.2, 0.6), (0.5, 0.1)),
], ids=str)
def test_the_brownian_paths_covariance_is_exact(terms):
    """Of the weights themselves: E[dW_1 dW_2] is the length of the overlap, negative where the directions differ."""
    (a, b), (c, d) = terms
    first, second = (BrownianNoise.weights(NoiseTerm(1.0, *t)) for t in terms)
    overlap = max(0.0, min(max(a, b), max(c, d)) - max(min(a, b), min(c, d)))
    sign = 1.0 if (a > b) == (c > d) else -1.0
    got = sum(w * second.get(node, 0.0) for node, w in first.items())
    assert got == pytest.approx(sign * overlap / math.sqrt(abs(a - b) * abs(c - d)), abs=1e-9)
    assert sum(w * w for w in first.values()) == pytest.approx(1.0, abs=1e-9)


def test_brownian_increments_add_up_whatever_the_steps():
    shape = (2, 3000)

    def draw(a, b, seeds=(3, 4)):
        return BrownianNoise(seeds)(NoiseTerm(1.0, a, b), torch.empty(len(seeds), shape[1])).double() * abs(a - b) ** 0.5

    whole = draw(0.9, 0.1)
    steps = np.linspace(0.9, 0.1, 6)
    torch.testing.assert_close(sum(draw(a, b) for a, b in itertools.pairwise(steps)), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(draw(0.1, 0.9), -whole, rtol=0, atol=5e-6)
    assert abs(float(whole.var()) - 0.8) < 0.06
    assert torch.equal(draw(0.9, 0.1, seeds=(4,)), whole[1:])
    with pytest.raises(NoiseError, match="times from 0 to 1"):
        draw(1.5, 0.1)


def test_runs_with_more_steps_follow_the_same_brownian_path():
    """Ancestral sampling of a constant x_0: its end is a functional of the path, which finer steps approach."""
    frame, ends = frames.edm(), []
    x = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10.0
    for steps in (20, 40, 640):
        grid = grids.uniform_lambda(frame, steps, end="stop", t_T=10.0, t_0=0.5)
        plan = make_plan("dpm_solver_sde_multistep", frame, grid, order=1)
        ends.append(run(plan, lambda y, s: torch.zeros_like(y), x, noise=BrownianNoise([1])))
    errors = [float((end - ends[-1]).std() / ends[-1].std()) for end in ends[:-1]]
    assert errors[1] < errors[0] < 0.3

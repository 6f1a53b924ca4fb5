"""What only a GPU can show: ``pytest tests -m cuda`` runs all of it (with ``test_kernels.py``, which then runs on the GPU too).

Rows are computed in four ways: by Triton or by torch, and either as they come or recorded.
"""

import threading

import pytest
import torch
from fewstep.samplers import GaussianNoise, estimates, graphs, lincomb, make_plan, normals, run
from fewstep.samplers.graphs import CudaRecorder, Graphs
from fewstep.samplers.lincomb import Combiner, Sum
from fewstep.samplers.plan import NoiseTerm
from variants import FRAME, GRID, VARIANTS, shrink

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
WAYS = ["triton", "torch", "triton recorded", "torch recorded"]
RECENT = torch.torch_version.TorchVersion(torch.__version__) >= "2.13"


class CountingRecorder(CudaRecorder):
    """Counts what is recorded and replayed."""

    def __init__(self):
        super().__init__()
        self.records = self.replays = 0

    def record(self, work, device):
        replay, result = super().record(work, device)
        self.records += 1

        def counted():
            self.replays += 1
            replay()

        return counted, result


@pytest.fixture
def way(monkeypatch):
    """``way(name)`` has rows computed in that way from now on, and gives the recorder, or None."""

    def choose(name):
        wanted, recorded = "triton" in name, "recorded" in name
        if wanted and original(torch.empty(1, device=DEVICE)) is None:
            pytest.skip("Triton is not installed")
        if recorded and not RECENT:
            pytest.skip("recordings need torch 2.13")
        monkeypatch.setattr(lincomb, "kernels_for", original if wanted else lambda like: None)
        monkeypatch.setattr(normals, "kernels_for", original if wanted else lambda like: None)
        recorder = CountingRecorder() if recorded else None
        cache = Graphs(recorder) if recorded else None
        monkeypatch.setattr(lincomb, "graphs_for", lambda like: cache if like.is_cuda else None)
        return recorder

    original = lincomb.kernels_for
    with torch.no_grad():
        yield choose


def draw(seed, dtype=torch.float32, shape=(2, 4, 9, 11)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("solver", "options"), VARIANTS, ids=str)
def test_no_synchronisation(solver, options, name, way):
    """CUDA itself refuses to wait for the device from the first evaluation to the last callback, recording included."""
    plan, x = make_plan(solver, FRAME, GRID, **options), draw(0) * 14.6
    way(name)
    run(plan, shrink, x, seed=1)  # kernels are compiled

    def denoiser(y, sigma):
        torch.cuda.set_sync_debug_mode("error")
        return shrink(y, sigma)

    def callback(progress):
        if progress.index == plan.nfe - 1:
            torch.cuda.set_sync_debug_mode("default")

    try:
        for _ in range(3):
            result = run(plan, denoiser, x, seed=1, callback=callback, hooks=[estimates.Estimates(plan)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), run(plan, shrink, x.cpu(), seed=1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["triton recorded", "torch recorded"])
@pytest.mark.parametrize(("solver", "options"), VARIANTS, ids=str)
def test_recorded_rows_keep_their_bits(solver, options, name, way):
    plan = make_plan(solver, FRAME, GRID, **options)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        x = draw(0, dtype) * 14.6
        way(name.split()[0])
        wanted = run(plan, shrink, x, seed=1)
        recorder = way(name)
        for _ in range(5):  # nothing of a run outlives it, so that the next one gets its addresses
            assert torch.equal(run(plan, shrink, x, seed=1), wanted)
        serves = dtype in (torch.float32, torch.float64) or name == "torch recorded"
        assert (recorder.records > 0) == (recorder.replays > 0) == serves


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
@pytest.mark.parametrize("name", ["triton recorded", "torch recorded"])
def test_threads_sample_while_another_draws(solver, name, way):
    """Two threads sample, recording and replaying; a third draws from the device's own generator all the while."""
    plan = make_plan(solver, FRAME, GRID)
    starts = [draw(k) * 14.6 for k in range(2)]
    way(name.split()[0])
    wanted = [run(plan, shrink, x) for x in starts]
    way(name)
    errors, done = [], threading.Event()

    def sample(k):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                assert torch.equal(run(plan, shrink, starts[k]), wanted[k])

    def dice():
        while not done.is_set():
            torch.randn(1000, device=DEVICE)

    def kept(function, *args):
        def call():
            try:
                function(*args)
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=call)

    torch.cuda.synchronize()
    threads, other = [kept(sample, k) for k in range(2)], kept(dice)
    for thread in (*threads, other):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    other.join()
    assert not errors


def test_a_host_may_record_the_rows_itself(way):
    recorder = way("torch recorded")
    x, m, out = draw(0), draw(1), draw(2)
    combine, graph = Combiner(x), torch.cuda.CUDAGraph()
    for _ in range(3):
        combine([(0.5, x), (2.0, m)], out)
    before = recorder.records
    with torch.cuda.graph(graph):
        combine([(0.5, x), (2.0, m)], out)
    assert recorder.records == before == 1 and recorder.replays == 2
    out.zero_()
    graph.replay()
    torch.testing.assert_close(out, 0.5 * x + 2.0 * m)


@pytest.mark.parametrize("name", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_rows_allocate_nothing(dtype, name, way):
    """Not for a moment: a recording holds no memory."""
    way(name)
    xs, out, wide = [draw(k, dtype) for k in range(6)], draw(7, dtype), draw(8, dtype, (2, 4, 9, 22))
    combine = Combiner(xs[0])
    forms = [[Sum([(0.3 + k, x) for k, x in enumerate(xs[:count])], out)] for count in range(1, 7)]
    forms += [[Sum([(0.25, xs[0]), (0.75, xs[1])], xs[0])], [Sum([(0.5, wide[..., ::2]), (1.5, xs[1])], out)]]
    forms += [[Sum([(2.0, xs[0]), (-1.0, xs[1])], xs[2]), Sum([(0.5, xs[2]), (0.25, xs[3])], xs[0])]]
    for rows in forms:
        combine.rows(rows)  # the scratch of 16-bit states, and what Triton compiles
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for rows in forms:
        combine.rows(rows)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 7), (1, 3, 7, 13), (2, 5, 1023), (1, 1025), (1, 1, 2**20 + 3)], ids=str)
def test_triton_rows_are_torchs(shape, dtype, way):
    """Three rows that read one another, watched; and one over a tensor that is no plain list of numbers, left to torch."""

    def rows():
        x, d, old, y, m = (draw(k, dtype, shape) for k in range(5))
        wide = draw(5, dtype, (*shape[:-1], 2 * shape[-1]))[..., ::2]
        return [
            Sum([(2.0, x), (-3.0, d)], m), Sum([(0.5, x), (0.25, m), (0.125, old)], x), Sum([(1.5, x), (-1.0, m)], y),
        ], [Sum([(0.3, wide), (0.7, old)], old)], d

    results = []
    for name in ("triton", "torch"):
        way(name)
        first, second, d = rows()
        flag = torch.zeros((), device=DEVICE)
        assert Combiner(d).rows(first, (d, flag)) is (name == "triton")
        Combiner(d).rows(second)
        assert not torch.isnan(flag)
        results.append([row.out.double().cpu() for row in (*first, *second)])
    eps = torch.finfo(dtype).eps
    for ours, chain in zip(*results, strict=True):  # a chain rounds in between, and Triton contracts products and sums
        torch.testing.assert_close(ours, chain, rtol=4 * eps, atol=(100 if dtype == torch.float32 else 40) * eps)


@pytest.mark.parametrize("shape", [(1, 16, 21, 60, 104), (64, 4, 128, 128)], ids=str)
@pytest.mark.parametrize(("solver", "options"), [
    ("ddim", {}), ("dpm_solver_multistep", {"order": 3}), ("dpm_solver_sde_multistep", {"order": 2}), ("unipc", {"order": 3}),
    ("unipc", {"order": 3, "prediction": "noise"}), ("deis_ab", {"basis": "rho", "ab_order": 3}),
], ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_peak_memory_is_the_plans(solver, options, shape, name, way):
    """All that is allocated at once, by torch's count, with a denoiser that needs nothing but its result."""
    plan, x = make_plan(solver, FRAME, GRID, **options), draw(0, shape=shape)
    recorder = way(name)
    draws = [draw(1, shape=shape)] * len(plan.noise_terms or ())
    latent = x.numel() * x.element_size()
    for _ in range(3):
        run(plan, lambda y, sigma: y * 0.5, x, noise=draws)  # compiled, recorded
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(plan, lambda y, sigma: y * 0.5, x, noise=draws)
        peak = 1 + (torch.cuda.max_memory_allocated() - before) / latent  # the start was there before
        assert plan.peak_latents <= peak < plan.peak_latents + 0.01, "but for numbers: noise levels, sums"
    assert recorder is None or recorder.replays > 0


@pytest.mark.parametrize("name", ["triton", "torch"])
@pytest.mark.parametrize("shape", [(3, 7), (2, 4, 32, 32), (1, 16, 5, 60, 104)], ids=str)
def test_noise_of_a_gpu_and_of_the_cpu(shape, name, way):
    """The words are the same; the logarithm and the cosine differ in their last bits, which is all that is promised."""
    way(name)
    term, seeds = NoiseTerm(1.0, 0.9, 0.5), [7 + k for k in range(shape[0])]
    ours = GaussianNoise(seeds)(term, torch.empty(shape, device=DEVICE))
    torch.testing.assert_close(ours.cpu(), GaussianNoise(seeds)(term, torch.empty(shape)), rtol=0, atol=4e-6)
    alone = GaussianNoise(seeds[-1:])(term, torch.empty((1, *shape[1:]), device=DEVICE))
    assert torch.equal(alone, ours[-1:]), "on one device the bits do not depend on the place in a batch"
    again = GaussianNoise(seeds)(term, torch.empty(shape, device=DEVICE))
    assert torch.equal(again, ours)


def test_recordings_are_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv("FEWSTEP_CUDA_GRAPHS", raising=False)
    assert graphs.graphs_for(draw(0)) is None
    monkeypatch.setenv("FEWSTEP_CUDA_GRAPHS", "1")
    assert (graphs.graphs_for(draw(0)) is not None) == RECENT

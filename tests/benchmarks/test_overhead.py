"""The overhead benchmark: what it writes, and its parts for a GPU with a profiler's events as they look there."""

import itertools
import os
import types

import pytest
import torch
from fewstep.benchmarks import counting, loops, overhead, overhead_cuda, overhead_tables
from fewstep.samplers import lincomb, normals


@pytest.fixture
def mine(monkeypatch):
    """The pack's loops alone, two of them."""
    monkeypatch.setattr(loops, "OURS", [entry for entry in loops.OURS if entry[0] in ("euler", "unipc 2")])
    monkeypatch.setattr(loops, "_sigma_loops", lambda *args: [])
    monkeypatch.setattr(loops, "_diffusers_loops", lambda *args: [])


def test_a_run_on_the_cpu_writes_its_table(mine, tmp_path):
    clock = itertools.count()
    rows = overhead.measure((1, 4, 8, 8), "cpu", torch.float32, 1, lambda: float(next(clock)))
    assert {row["method"] for row in rows} == {"ddim()", "unipc(order=2)"}
    for row in rows:  # by a clock that ticks at every look: a second a run
        assert row["us"] == row["pass_us"] * 2 == 1e6 / loops.STEPS
        assert row["ratio"] == pytest.approx(2 / row["passes"])
    overhead_tables.write(tmp_path, rows, "wall", "overhead")
    assert {path.name for path in tmp_path.iterdir()} == {"overhead.csv", "overhead.md", "overhead.png"}
    text = (tmp_path / "overhead.md").read_text()
    assert "| states |\n" in text and "waits" not in text
    gpu = [{**row, "host_us": 21.0, "launches": 1.05, "waits": 0.05, "device_us": 7.5} for row in rows]
    assert overhead_tables.table(gpu).count("| 21 | 7.5 | 1.05 | 0.05 |") == len(rows)
    assert "| states | host | device | launches | waits |" in overhead_tables.table(gpu)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_path_of_a_gpu(mine, monkeypatch):
    """All of it but CUDA itself: what would run on a GPU runs on the CPU."""
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *args, device, **options: randn(*args, **options))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(overhead_cuda, "recorded", lambda work: work)
    monkeypatch.setenv("FEWSTEP_CUDA_GRAPHS", "0")
    for module in (lincomb, normals):
        monkeypatch.setattr(module, "kernels_for", overhead_cuda.TRITON)
    rows = overhead.measure((1, 4, 8, 8), "cuda", torch.float32, 1, overhead.time.perf_counter)
    assert [row["package"] for row in rows] == [f"fewstep{way}" for way in overhead_cuda.WAYS] * 2
    assert all(row["host_us"] > 0 and row["launches"] == row["waits"] == row["device_us"] == 0 for row in rows)


def test_what_the_profiler_saw():
    kinds = torch.autograd.DeviceType

    def event(name, kind, us):
        return types.SimpleNamespace(name=name, device_type=kind, time_range=types.SimpleNamespace(elapsed_us=lambda: us))

    events = [
        *[event("cudaLaunchKernel", kinds.CPU, 4.0)] * 40, *[event("cudaGraphLaunch", kinds.CPU, 6.0)] * 20,
        *[event("cuLaunchKernelEx", kinds.CPU, 6.0)] * 10, event("cudaMemcpyAsync", kinds.CPU, 5.0), event("aten::add", kinds.CPU, 9.0),
        event("cudaStreamSynchronize", kinds.CPU, 50.0), event("cudaDeviceSynchronize", kinds.CPU, 70.0),
        *[event("void at::native::vectorized_elementwise_kernel<4>", kinds.CUDA, 2.5)] * 40, event("Memcpy DtoH", kinds.CUDA, 1.0),
    ]
    found = overhead_cuda.summary(events)
    assert loops.STEPS == 20
    assert found == {"launches": 71 / 20, "waits": 1 / 20, "device_us": pytest.approx(101 / 20)}


def test_the_hosts_time_is_taken_between_evaluations(mine, monkeypatch):
    x = torch.randn(1, 4, 8, 8)
    clocked = overhead_cuda.Clocked(x)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    ticks = itertools.count(step=3.0)
    monkeypatch.setattr(overhead_cuda.time, "perf_counter", lambda: next(ticks))
    for loop in loops.loops(x, clocked):
        assert clocked.host_us(loop) == 3e6
        assert len(clocked.times) == loops.STEPS


def test_every_way_is_measured_with_its_own_setup(mine, monkeypatch):
    x = torch.randn(1, 4, 8, 8)
    monkeypatch.setenv("FEWSTEP_CUDA_GRAPHS", "0")
    for module in (lincomb, normals):
        monkeypatch.setattr(module, "kernels_for", overhead_cuda.TRITON)
    monkeypatch.setattr(loops, "_diffusers_loops", lambda *args: [types.SimpleNamespace(package="diffusers")])
    found = overhead_cuda.ways(loops.loops(x, overhead_cuda.Clocked(x)))
    assert [loop.package for loop in found[-2:]] == ["fewstep, torch alone, graphs", "diffusers"] and len(found) == 9
    seen = {}
    for loop in found[:4]:
        loop.setup()
        assert normals.kernels_for is lincomb.kernels_for
        seen[loop.package] = lincomb.kernels_for is overhead_cuda.TRITON, os.environ["FEWSTEP_CUDA_GRAPHS"]
    assert seen == {
        "fewstep": (True, "0"), "fewstep, graphs": (True, "1"), "fewstep, torch alone": (False, "0"),
        "fewstep, torch alone, graphs": (False, "1"),
    }


def test_launches_are_counted(mine):
    """Euler in the alpha = 1 frame is one operation on states a step, and the sum that watches for NaN."""
    x = torch.randn(1, 4, 8, 8)
    denoised = torch.randn_like(x)
    counted = counting.count(loops.loops(x, lambda y, sigma: denoised)[0], x)
    assert counted["large_ops"] == pytest.approx(2.0, abs=0.15) and counted["host_reads"] <= 1 / loops.STEPS


def test_what_numba_does_is_counted(monkeypatch):
    """By hand, for 20 steps of Euler with noise: one pass and one draw a step, but for the last step, to sigma 0, without noise."""
    pytest.importorskip("numba", reason="Numba is not installed (pip install numba)")
    monkeypatch.setattr(loops, "OURS", [entry for entry in loops.OURS if entry[0] == "euler ancestral"])
    x, denoised = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64)
    fast, alone = (loop for loop in loops.loops(x, lambda y, sigma: denoised) if loop.package in ("fewstep", loops.ALONE))
    assert counting.count(fast, x)["large_ops"] == pytest.approx((20 + 19) / 20)
    fast.setup(), alone.setup()
    assert lincomb.cpu_kernels_for(x) is None, "torch alone leaves Numba off"
    loops._with_kernel(True)

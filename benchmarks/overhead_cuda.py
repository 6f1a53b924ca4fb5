"""What the overhead benchmark measures on a GPU alone: the pack's ways to compute rows, host time, launches, waits."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from ..samplers import lincomb, normals
from .loops import STEPS, Loop

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaMemcpyAsync",
            "cudaMemsetAsync")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")  # the profiler itself calls cudaDeviceSynchronize when it ends
HOST_RUNS = 5
TRITON = lincomb.kernels_for
WAYS = {"": (True, False), ", graphs": (True, True), ", torch alone": (False, False), ", torch alone, graphs": (False, True)}


class Clocked:
    """A denoiser that costs nothing and notes when it is called."""

    def __init__(self, x: torch.Tensor) -> None:
        self.denoised = torch.randn_like(x)
        self.times: list[float] = []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return self.denoised

    def host_us(self, loop: Loop) -> float:
        """Microseconds of the host from one evaluation to the next, the device's work not waited for by this function."""
        between: list[float] = []
        for _ in range(HOST_RUNS):
            loop.setup()
            torch.cuda.synchronize()  # nothing is queued
            self.times.clear()
            loop.run()
            between += [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(between) * 1e6


def ways(found: Iterable[Loop]) -> list[Loop]:
    """The pack's loops once for each way in which rows are computed, each with its setup, before the peers' loops."""
    mine, peers = [], []
    for loop in found:
        if loop.package != "fewstep":
            peers.append(loop)
            continue
        for name, way in WAYS.items():
            mine.append(dataclasses.replace(loop, package=f"fewstep{name}", setup=partial(_choose, *way)))
    return mine + peers


def _choose(triton: bool, graphs: bool) -> None:
    lincomb.kernels_for = normals.kernels_for = TRITON if triton else _no_kernels
    os.environ["FEWSTEP_CUDA_GRAPHS"] = str(int(graphs))


def _no_kernels(like: torch.Tensor) -> None:
    pass


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """``work`` as one CUDA graph: its time is the device's, not that of launching it piece by piece."""
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def profiled(loop: Loop) -> dict[str, float]:
    """Per step: launches, waits, and microseconds in which the device works, by torch's profiler."""
    kinds = torch.profiler.ProfilerActivity
    loop.setup()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        loop.run()
        torch.cuda.synchronize()
    return summary(profile.events() or ())


def summary(events: Iterable[Any]) -> dict[str, float]:
    """See ``profiled``; ``events`` are the profiler's, of ``STEPS`` steps."""
    found = list(events)
    device = [event for event in found if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "launches": sum(event.name in LAUNCHES for event in found) / STEPS,
        "waits": sum(event.name in WAITS for event in found) / STEPS,
        "device_us": sum(event.time_range.elapsed_us() for event in device) / STEPS,
    }

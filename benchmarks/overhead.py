"""Step overhead: ``python -m fewstep.benchmarks.overhead [--out DIR]`` writes overhead.csv, overhead.md, overhead.png.

``--device cuda`` writes overhead_cuda.*, with the pack's rows by Triton and by torch, as they come and as CUDA graphs.

What a step costs beside the model: time, launches and new tensors of the state's size, with a denoiser that costs nothing.
All methods run in one process, interleaved in shuffled order, in inference mode as in ComfyUI; times are medians. The
yardstick is one pass: the time to read or write one state, by copies that go round as many states as the plan holds. A
plan's ideal is its rows' reads and writes.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import overhead_cuda
from .counting import count
from .loops import STEPS, Loop, loops
from .overhead_tables import write
from .tables import number

SHAPES = ((1, 4, 128, 128), (1, 16, 128, 128), (1, 16, 21, 60, 104))
SLOW_S, VERY_SLOW_S = 0.8, 4.0  # runs longer than these are repeated three times, or not at all
BLOCK_S = 0.01  # a method runs at least that long before another takes its turn: the caches are its own
Row = dict[str, Any]


def timed(function: Callable[[], Any], clock: Callable[[], float], device: str) -> float:
    """Seconds that the call takes, on a GPU until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def copies(like: torch.Tensor, states: int) -> Callable[[], None]:
    """Copies between ``states`` tensors in a ring, ``STEPS`` of them."""
    ring = [torch.randn_like(like) for _ in range(states)]

    def run() -> None:
        for i in range(STEPS):
            ring[i % states].copy_(ring[(i + 1) % states])

    return run


def measure(shape: Sequence[int], device: str, dtype: torch.dtype, rounds: int, clock: Callable[[], float]) -> list[Row]:
    """A row for each method at one size."""
    x = torch.randn(tuple(shape), device=device, dtype=dtype) * 14.0
    on_gpu, clocked = device == "cuda", overhead_cuda.Clocked(x)
    found = overhead_cuda.ways(loops(x, clocked)) if on_gpu else loops(x, lambda y, sigma: clocked.denoised)
    yardsticks = {n: copies(x, n) for n in sorted({loop.states for loop in found})}
    if on_gpu:
        yardsticks = {n: overhead_cuda.recorded(run) for n, run in yardsticks.items()}
    draw = torch.empty_like(x)
    work: dict[Any, tuple[Callable[[], Any], Callable[[], Any]]] = {n: (_nothing, f) for n, f in yardsticks.items()}
    work["randn"] = (_nothing, lambda: [draw.normal_() for _ in range(STEPS)])
    work |= {loop: (loop.setup, loop.run) for loop in found}
    for setup, function in work.values() if on_gpu else ():
        for _ in range(3):  # kernels are compiled; rows are seen, recorded and replayed
            setup()
            function()

    def block(key: Any, runs: int) -> float:
        """Seconds a step."""
        setup, function = work[key]
        total = 0.0
        for _ in range(runs):
            setup()
            total += timed(function, clock, device)
        return total / runs / STEPS

    def warm(key: Any) -> float:
        """Seconds of a run, the first one not counted unless it is very slow: it compiles, loads and allocates."""
        seconds = block(key, 1) * STEPS
        return seconds if seconds > VERY_SLOW_S else block(key, 1) * STEPS

    first = {key: warm(key) for key in work}
    times = {key: [seconds / STEPS] if seconds > VERY_SLOW_S else [] for key, seconds in first.items()}
    for i in range(rounds):
        order = [key for key in work if first[key] < SLOW_S or (i < 3 and first[key] < VERY_SLOW_S)]
        random.shuffle(order)
        for key in order:
            times[key].append(block(key, max(1, math.ceil(BLOCK_S / first[key]))))
    middle = {key: statistics.median(values) for key, values in times.items()}
    rows = [_row(loop, shape, middle, x) for loop in found]
    if on_gpu:
        for row, loop in zip(rows, found, strict=True):
            row |= {"host_us": clocked.host_us(loop), **overhead_cuda.profiled(loop)}
    return rows


def _nothing() -> None:
    pass


def _row(loop: Loop, shape: Sequence[int], middle: dict[Any, float], x: torch.Tensor) -> Row:
    one = middle[loop.states] / 2
    seconds = middle[loop]
    counted = count(loop, x)
    return {
        "shape": "x".join(map(str, shape)), "package": loop.package, "method": loop.name, "form": loop.form,
        "us": seconds * 1e6, "pass_us": one * 1e6, "passes": loop.passes, "randn_us": middle["randn"] * 1e6,
        "ratio": (seconds - loop.draws * middle["randn"]) / (one * loop.passes), "draws": loop.draws, **counted,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--shapes", nargs="+", default=["x".join(map(str, s)) for s in SHAPES], help="such as 1x4x128x128")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"),
                        help="cpu: the process's own time, which other programs disturb less; with one thread only")
    args = parser.parse_args()
    if args.device == "cuda" and (args.clock == "cpu" or not torch.cuda.is_available()):
        parser.error("--device cuda needs a CUDA device and the wall clock")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    rows: list[Row] = []
    for shape in args.shapes:
        sizes = [int(n) for n in shape.split("x")]
        with torch.inference_mode():  # as ComfyUI runs every node
            rows += measure(sizes, args.device, getattr(torch, args.dtype), args.rounds, clock)
        for row in rows:
            if row["shape"] == shape:
                print(*(number(row[k]) for k in ("shape", "package", "method", "us", "ratio")), flush=True)
    write(args.out, rows, args.clock, "overhead" if args.device == "cpu" else "overhead_cuda")


if __name__ == "__main__":
    main()

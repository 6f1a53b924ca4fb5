"""CUDA graphs of rows: what a stage launches becomes one launch where it comes again on the same memory.

A repeated run of one size gets the addresses of the run before, by torch's caching allocator. Rows that come a second time
with the same coefficients on the same addresses are recorded, and from then on replayed. A graph holds no tensor, copies
nothing and allocates nothing; its key is everything that its launches depend on, so a replay does what they would have done.

Only with ``FEWSTEP_CUDA_GRAPHS=1`` in the environment, since no GPU has run this yet; on NVIDIA's CUDA; without gradients;
from torch 2.13 on. Before, a recording takes the device's default random generator: another thread's draws fail
meanwhile, a recording that fails leaves it unusable, and every replay costs two launches more.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from .lincomb import Sum

Work = Callable[[], bool]
Recording = tuple[Callable[[], object], bool]  # what replays it, and what the work returned
LIMIT = 512  # recordings and keys seen once that are kept: two dozen plans of 20 steps
log = logging.getLogger("fewstep")


class Recorder(Protocol):
    """Records launches: ``CudaRecorder``, or a stand-in where there is no GPU."""

    def busy(self) -> bool:
        """Whether the caller itself is being recorded."""

    def record(self, work: Work, device: torch.device) -> Recording:
        """What ``work`` launches, none of it done yet."""


class CudaRecorder:
    """Records by ``torch.cuda.CUDAGraph``, on a stream of its own; waits for nothing and frees no memory.

    (``torch.cuda.graph`` would wait for the device, collect garbage and empty the allocator's cache.)
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def busy(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def record(self, work: Work, device: torch.device) -> Recording:
        if device not in self._streams:
            # torch deals out its streams in turn; those of high priority have few other users, whose work must not be recorded
            self._streams[device] = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._streams[device]), _no_collection():
            graph.capture_begin(capture_error_mode="thread_local")  # type: ignore[no-untyped-call]
            try:
                result = work()
            finally:
                graph.capture_end()  # type: ignore[no-untyped-call]
        return graph.replay, result


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: it could free an old graph, which CUDA forbids while a new one is recorded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Graphs:
    """The recordings of a process, the least recently used of which are dropped. Threads may share it."""

    def __init__(self, recorder: Recorder, limit: int = LIMIT) -> None:
        self._recorder = recorder
        self._limit = limit
        self._seen: OrderedDict[Hashable, Recording | None] = OrderedDict()
        self._lock = threading.Lock()
        self._off = False

    def run(self, rows: Sequence[Sum], tensors: Sequence[torch.Tensor], form: Hashable, work: Work) -> bool:
        """Does ``work``, which computes ``rows``, or replays it; returns what it returns.

        Args:
            tensors: what else the launches read or write.
            form: what else decides which launches they are.
        """
        key = None if self._off or torch.is_grad_enabled() or self._recorder.busy() else key_of(rows, tensors, form)
        if key is None:
            return work()
        with self._lock:
            again = key in self._seen
            recording = self._seen.pop(key, None)
            if again and recording is None:
                recording = self._record(work, rows[0].out.device)
            if not self._off:
                self._seen[key] = recording
            if len(self._seen) > self._limit:
                self._seen.popitem(last=False)
            if recording is not None:
                recording[0]()
                return recording[1]
        return work()

    def _record(self, work: Work, device: torch.device) -> Recording | None:
        try:
            return self._recorder.record(work, device)
        except Exception as error:
            self._off = True
            self._seen.clear()
            log.warning("CUDA graphs are off until the program ends, sampling goes on without: %s", error)
            return None


def key_of(rows: Sequence[Sum], tensors: Sequence[torch.Tensor], form: Hashable) -> Hashable | None:
    """Everything that the launches of ``rows`` depend on, or None where a recording could not stand for them.

    That is: numbers, which tensor stands where, each tensor's address, shape, strides and precision, the device, and ``form``.
    """
    numbers: list[Hashable] = []  # a coefficient for each term; None for a row's output, which begins it
    each: list[int] = []  # the tensors that go with them, then those beside the rows
    distinct: dict[int, torch.Tensor] = {}
    for terms, out, offset in rows:
        if offset is not None:
            return None
        for c, x in ((None, out), *terms):
            if isinstance(c, torch.Tensor):
                return None
            numbers.append(c or repr(c))  # 0.0 and -0.0 are equal, but their products are not
            each.append(id(x))
            distinct[id(x)] = x
    for x in tensors:
        each.append(id(x))
        distinct[id(x)] = x
    facts: list[Hashable] = []
    for x in distinct.values():
        if type(x) is not torch.Tensor or x.is_neg():  # neither is all in the memory at its address
            return None
        facts.append((x.data_ptr(), x.shape, x.stride(), x.dtype))
    places = dict(zip(distinct, range(len(distinct)), strict=True))
    return form, rows[0].out.get_device(), tuple(numbers), tuple([places[i] for i in each]), tuple(facts)


def graphs_for(like: torch.Tensor) -> Graphs | None:
    """The process's recordings where they are asked for and can serve states like this one, else None."""
    if not like.is_cuda or torch.version.hip is not None or os.environ.get("FEWSTEP_CUDA_GRAPHS") != "1":
        return None
    return _graphs()


@cache
def _graphs() -> Graphs | None:
    if torch.torch_version.TorchVersion(torch.__version__) < "2.13":  # by number, not by letter
        log.warning("CUDA graphs need torch 2.13 or newer, this is %s: sampling goes on without", torch.__version__)
        return None
    return Graphs(CudaRecorder())

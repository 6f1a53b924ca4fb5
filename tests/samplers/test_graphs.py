"""Recorded rows: by a stand-in that replays operations on the addresses they had, and CUDA's calls by a fake of torch.cuda."""

import gc
import logging
import threading
import types
import weakref

import pytest
import torch
from address_graphs import AddressRecorder, Arena, Noting
from fewstep.samplers import graphs, lincomb, make_plan, run
from fewstep.samplers.graphs import Graphs
from fewstep.samplers.lincomb import Combiner, Sum
from variants import FRAME, GRID, VARIANTS


@pytest.fixture
def recorder(monkeypatch):
    """The combiners of a test record on the CPU, with a cache of their own."""
    recorder = AddressRecorder()
    recorder.graphs = Graphs(recorder)
    monkeypatch.setattr(lincomb, "graphs_for", lambda like: recorder.graphs)
    with torch.no_grad():
        yield recorder


def draw(seed, dtype=torch.float32, shape=(2, 3, 5, 7)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows(c=0.4):
    """Two rows on tensors of their own, and what their outputs must become."""
    x, d, y = draw(0), draw(1), torch.empty(2, 3, 5, 7)
    first = c * x.double() - 1.5 * d.double()
    return [Sum([(c, x), (-1.5, d)], x), Sum([(2.0, x), (0.25, d)], y)], first, 2 * first + 0.25 * d.double()


def compute(made):
    """Computes what ``rows`` made, from the same start each time, and checks it."""
    chain, first, second = made
    chain[0].out.copy_(draw(0))
    Combiner(chain[0].out).rows(chain)
    torch.testing.assert_close(chain[0].out.double(), first, rtol=0, atol=1e-6)
    torch.testing.assert_close(chain[1].out.double(), second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_whole_plans_keep_their_bits(name, options, dtype, recorder, monkeypatch):
    """Three runs on the same memory: seen, recorded, replayed. What the plan computes by numbers is replayed in full."""
    plan, arena, x = make_plan(name, FRAME, GRID, **options), Arena(monkeypatch), draw(0, dtype) * 14.6
    calls = []
    original = recorder.graphs.run
    monkeypatch.setattr(recorder.graphs, "run", lambda *args: calls.append(args[0]) or original(*args))

    def denoiser(y, sigma):
        out = torch.empty_like(y)
        return out.copy_(y.float() / (1 + sigma.reshape(-1, 1, 1, 1) ** 2) + 0.1)

    def sample():
        arena.begin()
        return run(plan, denoiser, x, seed=3).clone()

    with monkeypatch.context() as patch:
        patch.setattr(lincomb, "graphs_for", lambda like: None)
        wanted = sample()
    assert all(torch.equal(sample(), wanted) for _ in range(3))
    plain = sum(not any(isinstance(c, torch.Tensor) for row in call for c, _ in row.terms) for call in calls) // 3
    if not plan.hooks:  # whose tensors come from torch's allocator for the CPU, at any address
        assert recorder.records == plain and recorder.replays == 2 * plain
    assert plain >= plan.nfe - 1 - (dtype == torch.bfloat16), "16-bit states make their scratch in the first row"


def test_a_recording_is_made_at_the_second_sight_and_replayed_from_then_on(recorder):
    made, seen = rows(), []
    for _ in range(4):
        compute(made)
        seen.append((recorder.records, recorder.replays))
    assert seen == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_other_numbers_and_other_memory_are_other_keys(recorder):
    first, other = rows(), rows(0.5)  # `other` on other memory as well
    for made in (first, first, other, other, first, other):
        compute(made)
    assert recorder.records == 2 and recorder.replays == 4
    chain = first[0]
    chain[0] = Sum([(0.4, chain[0].out), (-1.4, chain[0].terms[1][1])], chain[0].out)
    Combiner(chain[0].out).rows(chain)
    chain[1] = chain[1]._replace(out=torch.empty_like(chain[1].out))
    Combiner(chain[0].out).rows(chain)
    assert recorder.records == 2 and recorder.replays == 4, "never seen in this form"


def test_the_same_address_in_another_shape_order_or_precision():
    x, memory = draw(0), draw(1, shape=(8, 4, 4))
    views = [memory[:4], memory[::2], memory[:4].transpose(0, 1), memory[:2], memory[:4].view(torch.int32), memory[1:5]]
    keys = [graphs.key_of([Sum([(0.5, view)], x)], (), True) for view in views]
    assert len(set(keys)) == len(keys)
    assert keys[0] == graphs.key_of([Sum([(0.5, memory[:4])], x)], (), True)


def test_the_same_memory_as_another_tensor():
    """What a chain does depends on which of its tensors are one: its target must be read before it is written."""
    x, m = draw(0), draw(1)
    one, two = (graphs.key_of([Sum([(0.5, m), (0.5, y)], x)], (), True) for y in (x, x.view(x.shape)))
    assert one != two


def test_keys_tell_zeros_rows_forms_and_other_tensors_apart():
    x, y = draw(0), draw(1)
    keys = [
        graphs.key_of(chain, tensors, form) for chain, tensors, form in [
            ([Sum([(0.0, x)], y)], (), True), ([Sum([(-0.0, x)], y)], (), True), ([Sum([(0.0, x)], y)], (), False),
            ([Sum([(0.0, x)], y)], (x,), True), ([Sum([(0.0, x)], y)], (y,), True), ([Sum([(0.0, y)], x)], (), True),
            ([Sum([], y), Sum([(0.0, x)], y)], (), True), ([Sum([(0.0, x)], y), Sum([], y)], (), True),
        ]
    ]
    assert len(set(keys)) == len(keys) and None not in keys


def test_what_no_recording_can_stand_for(recorder):
    x, m, out = draw(0), draw(1), torch.empty(2, 3, 5, 7)
    per_channel, offset = draw(2, shape=(3, 1, 1)), draw(3, shape=(3, 1, 1))
    negative = torch.complex(x, m).conj().imag  # its memory holds +m
    assert negative.is_neg()
    for terms, shift, wanted in [
        ([(per_channel, x)], None, per_channel * x), ([(0.5, x)], offset, 0.5 * x + offset),
        ([(1.0, x), (1.0, negative)], None, x - m), ([(0.5, torch.nn.Parameter(x))], None, 0.5 * x),
    ]:
        assert graphs.key_of([Sum(terms, out, shift)], (), True) is None
        for _ in range(3):
            torch.testing.assert_close(Combiner(x)(terms, out, shift), wanted)
    recorder.recorded = True  # the host records the whole of sampling
    for _ in range(3):
        Combiner(x)([(0.5, x)], out)
    recorder.recorded = False
    with torch.enable_grad():
        for _ in range(3):
            Combiner(x)([(0.5, x)], out)
    assert recorder.records == 0 and recorder.replays == 0


def test_the_least_recently_used_recording_is_dropped(recorder):
    recorder.graphs = Graphs(recorder, limit=2)
    a, b, c = rows(), rows(), rows()
    for made in (a, a, b, b, a, c):  # b makes way for c
        compute(made)
    assert recorder.records == 2
    compute(a)
    assert recorder.records == 2 and recorder.replays == 4
    compute(b)
    assert recorder.records == 2, "b is seen anew, and c has made way"
    compute(b)
    assert recorder.records == 3
    for made in (a, b, c) * 3:  # more keys in turn than are kept: nothing is recorded, nothing grows
        compute(made)
    assert len(recorder.graphs._seen) == 2


def test_a_dropped_recording_and_the_rows_tensors_are_freed(recorder):
    recorder.graphs = Graphs(recorder, limit=1)
    made = rows()
    compute(made)
    compute(made)
    recording = weakref.ref(next(iter(recorder.graphs._seen.values()))[0])
    tensors = [weakref.ref(x) for row in made[0] for x in (row.out, *(t for _, t in row.terms))]
    del made
    gc.collect()
    assert not any(ref() is not None for ref in tensors), "a recording holds no tensor"
    assert recording() is not None
    compute(rows())
    assert recording() is None


def test_a_failure_turns_recordings_off_with_one_warning(recorder, monkeypatch, caplog):
    def fail(work, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorder, "record", fail)
    with caplog.at_level(logging.WARNING, "fewstep"):
        for made in (rows(), rows()):
            for _ in range(3):
                compute(made)
    assert [r.getMessage() for r in caplog.records if "CUDA graphs are off" in r.getMessage()] == [caplog.records[0].getMessage()]
    assert "not permitted" in caplog.text and not recorder.graphs._seen


def test_threads_share_the_recordings(recorder):
    """Each on its own memory, all through one cache; every result is checked, and every key is recorded once."""
    errors = []

    def sample():
        try:
            with torch.no_grad():  # a mode of the thread
                made = [rows(0.1 * k + 0.1) for k in range(5)]
                for _ in range(20):
                    for part in made:
                        compute(part)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=sample) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert recorder.records == 20 and recorder.replays == 4 * 5 * 19


def strided(k, dtype):
    return draw(k, dtype, (2, 3, 5, 14))[..., ::2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [draw, strided], ids=["plain", "strided"])
@pytest.mark.parametrize("coefficients", [
    (), (1.0,), (0.5,), (-1.0, 2.0), (0.25, 0.75), (1.0, -0.5, 0.25), (0.2, 0.3, 0.5), (1.5, 1.0, -0.75, 0.125, 2.0, -3.0, 0.5, 0.0625),
], ids=str)
def test_chains_make_no_tensor(dtype, make, coefficients):
    """``Noting`` refuses operations that make one; also where the target is a term, first or last."""
    xs = [make(k, dtype) for k in range(len(coefficients))]
    combine = Combiner(make(0, dtype))
    combine([(0.5, make(1, dtype))], make(2, dtype))  # the scratch is there
    for out in [make(9, dtype), *xs[:1], *xs[-1:]]:
        with Noting() as noting:
            combine(list(zip(coefficients, xs, strict=True)), out)
        assert noting.operations or coefficients == (1.0,)


@pytest.fixture
def process(monkeypatch):
    """A process that has not asked for recordings yet, on a GPU."""
    graphs._graphs.cache_clear()
    monkeypatch.delenv("FEWSTEP_CUDA_GRAPHS", raising=False)
    yield types.SimpleNamespace(is_cuda=True)
    graphs._graphs.cache_clear()


def test_recordings_are_asked_for(process, monkeypatch, caplog):
    assert graphs.graphs_for(process) is None
    monkeypatch.setenv("FEWSTEP_CUDA_GRAPHS", "1")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.version, "hip", None)
    assert graphs.graphs_for(process) is graphs.graphs_for(process) is not None, "one cache for all runs"
    assert graphs.graphs_for(draw(0)) is None, "on the CPU there is nothing to record"
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert graphs.graphs_for(process) is None
    graphs._graphs.cache_clear()
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu130")
    assert graphs.graphs_for(process) is None and "torch 2.13" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_what_cuda_is_asked_for(fails, monkeypatch):
    """The calls of a recording in their order; it ends, and garbage is collected again, whether the work fails or not."""
    calls = []

    class Graph:
        def capture_begin(self, **options):
            calls.append(("begin", options))

        def capture_end(self):
            calls.append("end")

        def replay(self):
            calls.append("replay")

    class Current:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            calls.append(("enter", self.stream))

        def __exit__(self, *error):
            calls.append("exit")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: f"stream of {device}, {priority}")
    monkeypatch.setattr(torch.cuda, "stream", Current)

    def work():
        calls.append(("work", gc.isenabled()))
        return bool(1 // (not fails))

    recorder, device = graphs.CudaRecorder(), torch.device("cuda", 1)
    recorded = [("enter", "stream of cuda:1, -1"), ("begin", {"capture_error_mode": "thread_local"}), ("work", False), "end", "exit"]
    if fails:
        with pytest.raises(ZeroDivisionError):
            recorder.record(work, device)
        assert calls == recorded
    else:
        replay, result = recorder.record(work, device)
        assert calls == recorded and result is True
        replay()
        assert calls[-1] == "replay"
    assert gc.isenabled()

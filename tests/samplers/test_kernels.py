"""The Triton kernels: on a GPU as they run, without one in Triton's interpreter on the CPU, and compiled for one."""

import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns without it
triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with torch for CUDA; on the CPU: pip install triton)")

from fewstep.samplers import frames, grids, kernels, lincomb, make_plan, normals, run
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.errors import DenoiserError
from fewstep.samplers.lincomb import Combiner, Sum

pytestmark = [pytest.mark.cuda] if CUDA else []
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def use_kernels(monkeypatch):
    """The engine takes the kernels on the CPU too, and a launch is counted."""
    if not CUDA:
        monkeypatch.setattr(lincomb, "kernels_for", lambda like: None if like.dtype == torch.float64 else kernels)
    launches = []
    original = kernels.combine
    monkeypatch.setattr(kernels, "combine", lambda rows, watch=None: original(rows, watch) and (launches.append(len(rows)) or True))
    return launches


def draw(seed, dtype=torch.float32, shape=(2, 3, 9, 11)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", range(1, 9))
def test_one_row_of_one_to_eight_tensors(dtype, count, use_kernels):
    coefficients = [0.31, -1.7, 2.4, 0.05, -0.6, 1.1, 0.9, -0.2][:count]
    xs = [draw(i, dtype) for i in range(count)]
    wanted = sum(c * x.double() for c, x in zip(coefficients, xs, strict=True)).to(dtype)
    terms = list(zip(coefficients, xs, strict=True))
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(Combiner(xs[0])(terms, torch.empty_like(xs[0])), wanted, rtol=step, atol=8 * 1.2e-7)
    torch.testing.assert_close(Combiner(xs[0])(terms, xs[-1]), wanted, rtol=step, atol=8 * 1.2e-7)
    assert use_kernels == [1, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_three_rows_in_one_launch_are_the_rows_one_by_one(dtype, use_kernels):
    x, d, old, y = (draw(i, dtype) for i in range(4))

    def rows(x, d, old, y, m):
        return [
            Sum([(2.0, y), (-3.0, d)], m), Sum([(0.5, x), (0.25, m), (0.125, old)], x),
            Sum([(1.5, x), (-1.0, m), (0.5, old)], y),
        ]

    single = [t.clone() for t in (x, d, old, y)] + [torch.empty_like(x)]
    for row in rows(*single):
        Combiner(x)(*row)
    together = [t.clone() for t in (x, d, old, y)] + [torch.empty_like(x)]
    flag = torch.zeros((), device=DEVICE)
    assert Combiner(x).rows(rows(*together), (together[1], flag)) is True
    assert use_kernels == [1, 1, 1, 3] and float(flag) == 0
    for a, b in zip(together, single, strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_watched_tensor_leaves_a_mark(value):
    x, d, flag = draw(0, shape=(1, 5000)), draw(1, shape=(1, 5000)), torch.zeros((), device=DEVICE)
    d[0, 4321] = value
    assert Combiner(x).rows([Sum([(1.0, x), (0.5, d)], x)], (d, flag)) and bool(torch.isnan(flag))
    other = torch.zeros_like(flag)
    assert Combiner(x).rows([Sum([(1.0, x)], x)], (d, other)) and bool(torch.isnan(other)), "no row needs to read it"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 1), (1,), (3, 9, 11), (9, 11), (2, 1, 1, 1), (2, 3, 9, 11), (2, 3, 1, 1)], ids=str)
def test_tensor_coefficients_in_one_launch(dtype, shape, use_kernels):
    c, g, x, m = draw(5, shape=shape), draw(6, shape=(3, 1, 1)), draw(0, dtype), draw(1, dtype)
    wanted = (c.double() * x.double() - 2 * m.double() + c.double() * m.double() + g.double()).to(dtype)
    Combiner(x)([(c, x), (-2.0, m), (c, m)], x, g)
    torch.testing.assert_close(x, wanted, rtol=torch.finfo(dtype).eps, atol=2e-6)
    assert use_kernels == [1]


def test_what_the_kernels_refuse_goes_to_torch(use_kernels):
    x, m = draw(0), draw(1)
    c = draw(2, shape=(3, 1, 11))  # not (i // inner) % size
    torch.testing.assert_close(Combiner(x)([(c, x)], torch.empty_like(x)), c * x)
    strided = draw(3, shape=(2, 3, 9, 22))[..., ::2]
    torch.testing.assert_close(Combiner(x)([(0.5, strided), (2.0, m)], torch.empty_like(x)), 0.5 * strided + 2 * m)
    many = [draw(i) for i in range(9)]
    torch.testing.assert_close(Combiner(x)([(0.1, t) for t in many], torch.empty_like(x)), sum(0.1 * t for t in many), atol=1e-6, rtol=1e-5)
    assert use_kernels == []
    outs = [draw(k) for k in range(4)]
    Combiner(x).rows([Sum([(k + 1.0, m), (1.0, x)], out) for k, out in enumerate(outs)])  # more rows than one launch takes
    for k, out in enumerate(outs):
        torch.testing.assert_close(out, (k + 1.0) * m + x)
    assert use_kernels == [1] * 4
    use_kernels.clear()
    per_sample, out = draw(4, shape=(2, 1, 1, 1)), torch.empty_like(x)
    Combiner(x).rows([Sum([(per_sample, x)], out), Sum([(1.0, out), (1.0, m)], m)])  # row by row, in order
    assert use_kernels == [1, 1]
    torch.testing.assert_close(out, per_sample * x)


@pytest.mark.parametrize(("name", "options", "rows"), [
    ("ddim", {}, [1] * 7), ("dpm_solver_multistep", {"order": 3}, [1] * 7), ("dpm_solver_sde_multistep", {}, [1] * 7),
    # UniPC: the first prediction has no rows to go with; then each correction goes with the next prediction, noise
    # predictions with their store row too; the last row stands alone
    ("unipc", {"order": 3}, [1, 2, 2, 2, 2, 2, 1, 1]), ("unipc", {"prediction": "noise"}, [1, 1, 3, 3, 3, 3, 3, 2, 1]),
])
def test_a_run_takes_one_launch_a_stage_and_the_same_path(name, options, rows, use_kernels, monkeypatch):
    frame = frames.edm()
    plan = make_plan(name, frame, grids.karras(frame, 7, end="zero", t_T=14.6, t_0=0.03), **options)
    x = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 14.6).to(DEVICE)
    denoiser = GaussianMixture.make(0).denoiser(frame)
    fast = run(plan, denoiser, x, seed=3)
    launches = list(use_kernels)
    monkeypatch.setattr(lincomb, "kernels_for", lambda like: None)
    torch.testing.assert_close(fast, run(plan, denoiser, x, seed=3), rtol=0, atol=2e-4)
    assert launches == rows


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_is_traced_through_the_kernels():
    frame, count = frames.edm(), iter(range(100))
    plan = make_plan("unipc", frame, grids.karras(frame, 7, end="zero", t_T=14.6, t_0=0.03))

    def denoiser(x, sigma):
        out = x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        out[0, 0, 0, 0] += float("nan") if next(count) == 4 else 0.0
        return out

    with pytest.raises(DenoiserError, match="evaluation 4 "):
        run(plan, denoiser, torch.randn(2, 4, 8, 8, device=DEVICE))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_is_traced_through_rows_with_tensor_coefficients(use_kernels):
    """Their kernel does not watch, so the caller must."""
    x, d, flag, c = draw(0), draw(1), torch.zeros((), device=DEVICE), draw(2, shape=(3, 1, 1))
    d[0, 0, 0, 0] = float("nan")
    assert not Combiner(x).rows([Sum([(c, x), (0.5, d)], x)], (d, flag))
    assert use_kernels == [1]


@pytest.mark.parametrize("n", [1, 2, 7, 4000])
def test_normals_are_those_of_the_cpu(n):
    draws, seeds = ((12345, 1.0), (2**63 + 77, -0.5), (1, 0.25)), [3, 9]
    wanted = normals.Normals(seeds).fill(torch.empty(2, n), draws)
    placed = torch.tensor([normals.signed(normals.hashed("Q", s)) for s in seeds]).to(DEVICE)
    out = torch.full((2, n), float("nan"), device=DEVICE)
    for k, (key, weight) in enumerate(draws):
        kernels.add_normals(out, placed, normals.signed(key), weight, add=k > 0)
    torch.testing.assert_close(out.cpu(), wanted, rtol=0, atol=4e-6)


def _sources():
    """(kernel, signature, constants) of every kernel, at its largest."""
    import inspect

    def signature(kernel, constants, types):
        names = inspect.signature(kernel.fn).parameters
        kind = {n: next((t for start, t in types if n.startswith(start)), "fp32") for n in names}
        return kernel, {n: "constexpr" if n in constants else kind[n] for n in names}, constants

    for dtype in ("fp32", "bf16", "fp16"):
        pointers = [("flag", "*fp32"), ("out", f"*{dtype}"), ("o", f"*{dtype}"), ("x", f"*{dtype}"), ("inner", "i32"), ("size", "i32"), ("n", "i32")]
        yield signature(kernels._rows, {"INPUTS": 8, "ROWS": 3, "WATCH": True, "BLOCK": kernels.BLOCK}, pointers)
        yield signature(kernels._tensor_row, {"INPUTS": 5, "TENSORS": 261, "BLOCK": kernels.BLOCK}, [*pointers, ("t", "*fp32")])
    noise = [("out", "*fp32"), ("seeds", "*i64"), ("key", "i64"), ("n", "i32"), ("half", "i32")]
    yield signature(kernels._normals, {"ADD": True, "BLOCK": kernels.BLOCK}, noise)


def test_the_kernels_compile_for_a_gpu(tmp_path):
    """By Triton's compiler and NVIDIA's assembler, which need no GPU; in a process of its own, without the interpreter.

    bfloat16 is rounded to nearest, where the interpreter only cuts off.
    """
    import subprocess
    import sys

    if tuple(int(v) for v in triton.__version__.split(".")[:2]) < (3, 2):
        pytest.skip("compiling without a GPU takes Triton 3.2 or newer")
    script = f"""
import sys
sys.path[:0] = [{str(os.path.dirname(os.path.dirname(__file__)))!r}, {str(os.path.dirname(__file__))!r}]
import conftest, test_kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
count = 0
for kernel, signature, constants in test_kernels._sources():
    code = compile(ASTSource(fn=kernel, signature=signature, constexprs=constants), target=GPUTarget("cuda", 80, 32))
    rounds = "cvt.rn.bf16" in code.asm["ptx"] or "*bf16" not in signature.values()
    count += len(code.asm["cubin"]) > 1000 and rounds
print("compiled", count)
"""
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.strip().endswith("compiled 7"), done.stderr[-2000:]

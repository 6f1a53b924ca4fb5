"""The engine: shapes, precisions, progress, cancellation, memory, and no host reads while a plan runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.samplers import GivenNoise, Row, Stage, frames, grids, make_plan, run, solver_names
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.engine import Engine
from fewstep.samplers.errors import DenoiserError, Interrupted, NoiseError, PlanError
from fewstep.samplers.grids import Node
from fewstep.samplers.hooks import Hook, StateHook
from fewstep.samplers.plan import IDENTITY, Plan
from host_reads import HostReads
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from variants import FRAME, GRID, VARIANTS, shrink


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_no_host_reads_while_a_plan_runs(name, options):
    plan = make_plan(name, FRAME, GRID, **options)
    x, log = torch.randn(2, 4, 8, 8) * 14.6, []
    with HostReads() as reads:
        run(plan, shrink, x, seed=1, callback=lambda p: log.append(reads.count))
    assert log == [0] * plan.nfe, "the loop read a tensor on the host"
    assert reads.count == 1, "after the loop the engine reads once, to see whether all predictions were finite"


def test_the_read_counter_counts():
    plan = make_plan("ddim", FRAME, GRID)
    log = []
    with HostReads() as reads:
        run(plan, lambda x, s: shrink(x, s) if bool((x > 0).any()) and x.tolist() else x, torch.ones(1, 4), callback=lambda p: log.append(reads.count))
    assert log[0] == 2 and log[-1] == 2 * plan.nfe


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_facts_match_a_counted_run(name, options):
    plan = make_plan(name, FRAME, GRID, **options)
    shape, calls, peak, stored = (3, 4, 8, 16), [], [0], set()
    noises = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() == math.prod(shape) * 4:
                stored.add(StorageWeakRef(out.untyped_storage()))
            return out

    def alive():
        return sum(not ref.expired() for ref in stored)

    def denoiser(x, sigma):
        calls.append(sigma)
        peak[0] = max(peak[0], alive())
        return shrink(x, sigma)

    class Noise:
        def __call__(self, term, out):
            noises.append(term)
            return out.normal_()

    class AfterDenoiser(Hook):  # the point in a stage at which most is alive: between the prediction and the next row
        def state(self, stage, x):
            peak[0] = max(peak[0], alive())
            return x

    with Watch():
        start = torch.randn(shape) * 14.6
        hooks = [] if options.get("thresholding") else [AfterDenoiser()]
        run(plan, denoiser, start, noise=Noise(), hooks=hooks, callback=lambda p: peak.__setitem__(0, max(peak[0], alive())))
    assert len(calls) == plan.nfe
    assert bool(noises) == plan.stochastic
    if not options.get("thresholding"):
        assert peak[0] == plan.peak_latents


@pytest.mark.parametrize("shape", [(1, 16, 5, 40, 64), (64, 4, 32, 32)], ids=["video", "batch"])
@pytest.mark.parametrize(("name", "options", "buffers", "peak"), [
    # buffers: the carried state, y, noise, stored outputs that are not x_0; peak: also the caller's start and predictions
    ("ddim", {}, 1, 3), ("dpm_solver_multistep", {"order": 3}, 1, 5), ("dpm_solver_sde_multistep", {"order": 2}, 2, 5),
    ("unipc", {"order": 3}, 2, 7), ("unipc", {"order": 3, "prediction": "noise"}, 6, 8), ("deis_ab", {"basis": "rho", "ab_order": 3}, 5, 7),
])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_copy_that_the_plan_does_not_list(shape, name, options, buffers, peak, dtype):
    """A whole run makes no other tensor of the state's size than its buffers, each once."""
    plan = make_plan(name, FRAME, GRID, **options)
    x, denoised = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    made = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= x.untyped_storage().nbytes():
                made.add(StorageWeakRef(out.untyped_storage()))
            return out

    with Watch():
        run(plan, lambda y, s: denoised, x, seed=1)
    known = {StorageWeakRef(t.untyped_storage()) for t in (x, denoised)}
    assert len(made - known) == buffers
    assert plan.peak_latents == peak


@pytest.mark.parametrize("shape", [(2, 8), (2, 4, 50), (1, 4, 8, 8), (2, 4, 3, 8, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_shapes_and_precisions(shape, dtype, tolerance):
    plan = make_plan("unipc", FRAME, GRID, order=3)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 14.6
    exact = run(plan, shrink, x)
    start = x.to(dtype)
    kept = start.clone()
    seen = []

    def denoiser(y, sigma):
        seen.append((y.dtype, sigma.dtype, tuple(sigma.shape)))
        return shrink(y, sigma)

    result = run(plan, denoiser, start)
    assert result.dtype == dtype and result.shape == shape and torch.equal(start, kept)
    assert set(seen) == {(dtype, torch.float64 if dtype == torch.float64 else torch.float32, (shape[0],))}
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=tolerance * exact.abs().max().item())


def test_16_bit_rows_are_summed_in_float32():
    # 1 - 1/512 - (1 - 1/256) is 1/512; in bfloat16 arithmetic 1 - 1/512 rounds to 1
    node = Node(1.0, 1.0, 1.0, 0.0)
    plan = Plan((Stage(node, Row(x=1 - 1 / 512, m={0: -(1 - 1 / 256)})),), (node, node))
    result = run(plan, lambda x, s: torch.ones_like(x), torch.ones(1, 4, dtype=torch.bfloat16))
    assert torch.equal(result.float(), torch.full((1, 4), 1 / 512))


def test_tensor_coefficients_offsets_and_the_start_state():
    node, end = Node(2.0, 1.0, 2.0, -math.log(2)), Node(1.0, 1.0, 1.0, 0.0)
    c = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    g = torch.tensor([0.5, 0.0, -0.5]).reshape(3, 1, 1)
    plan = Plan(
        (Stage(node, Row(x=c, m={0: 2 * c}, offset=g)), Stage(end, Row(x=0.5, x_T=-1.0, m={0: 1.0}), Row(x=1.0, x_T=0.25))),
        (node, end), Row(x=c),
    )
    x, seen = torch.randn(2, 3, 4, 4), []
    result = run(plan, lambda y, s: seen.append(y.clone()) or y * 0 + 3, x)
    first = c * x + 2 * c * 3 + g
    torch.testing.assert_close(seen[1], first + 0.25 * x)
    torch.testing.assert_close(result, c * (0.5 * first - x + 3))


def test_callback_and_sigma_order():
    plan = make_plan("dpm_solver_singlestep", FRAME, GRID, order=3)
    log = []
    result = run(plan, shrink, torch.randn(1, 4, 8, 8), callback=log.append)
    assert [p.index for p in log] == list(range(plan.nfe)) and {p.total for p in log} == {plan.nfe}
    assert [p.sigma for p in log] == [s.node.sigma for s in plan.stages]
    assert [p.stage for p in log] == list(plan.stages) and torch.equal(log[-1].x, result)
    assert all(p.denoised.shape == (1, 4, 8, 8) for p in log)


def test_interruption_passes_through():
    class HostInterrupt(BaseException):
        pass

    def stop(progress):
        if progress.index == 2:
            raise HostInterrupt

    plan, calls = make_plan("unipc", FRAME, GRID), []
    with pytest.raises(HostInterrupt):
        run(plan, lambda x, s: calls.append(0) or shrink(x, s), torch.randn(1, 4, 8, 8), callback=stop)
    assert len(calls) == 3
    with pytest.raises(Interrupted, match="before evaluation 2"):
        run(plan, shrink, torch.randn(1, 4, 8, 8), should_stop=iter([False, False, True]).__next__)


@pytest.mark.parametrize("name", solver_names())
def test_same_seed_same_bits_and_no_dependence_on_the_batch(name):
    if name == "dpm_solver_adaptive":
        pytest.skip("the batch shares one step size there, as its help says")
    plan = make_plan(name, FRAME, GRID, **({"basis": "rho"} if name == "deis_ab" else {}))
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 14.6
    together = run(plan, shrink, x, seed=7)
    assert torch.equal(together, run(plan, shrink, x, seed=7))
    for i in range(4):
        assert torch.equal(run(plan, shrink, x[i : i + 1], seed=7 + i)[0], together[i])
    assert torch.equal(run(plan, shrink, x.flip(0), seed=[10, 9, 8, 7]).flip(0), together)
    assert torch.equal(together, run(plan, shrink, x, seed=8)) != plan.stochastic


@pytest.mark.parametrize(("returns", "words"), [
    (lambda x: x[:1], r"shape \(1, 4, 8, 8\), expected the state's shape \(2, 4, 8, 8\)"),
    (lambda x: x.double(), "float64, expected the state's torch.float32"),
    (lambda x: x.to("meta"), "a tensor on meta"),
    (lambda x: None, "NoneType, expected a tensor"),
    (lambda x: x / 0, r"evaluation 0 \(sigma 14.6\) returned NaN or infinity"),
])
def test_bad_denoisers_are_named(returns, words):
    with pytest.raises(DenoiserError, match=words):
        run(make_plan("ddim", FRAME, GRID), lambda x, s: returns(x), torch.randn(2, 4, 8, 8))


def test_nan_is_traced_to_its_evaluation():
    count = iter(range(100))
    with pytest.raises(DenoiserError, match="evaluation 3 "):
        run(make_plan("unipc", FRAME, GRID), lambda x, s: shrink(x, s) * (math.nan if next(count) == 3 else 1), torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize("part", [lambda y: y, lambda y: y[:, 2:3].expand_as(y), lambda y: y.transpose(2, 3)], ids=["all", "a channel", "turned"])
def test_a_denoiser_that_returns_its_input(part):
    plan = make_plan("dpm_solver_multistep", FRAME, GRID)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(run(plan, lambda y, s: part(y), x), run(plan, lambda y, s: part(y).clone(), x), rtol=0, atol=0)


@pytest.mark.parametrize("x", [torch.ones(2, 4, dtype=torch.int64), torch.ones(4), torch.ones(0, 4), [1.0]])
def test_bad_start_states_are_named(x):
    with pytest.raises(PlanError, match="start state"):
        run(make_plan("ddim", FRAME, GRID), shrink, x)


def test_stochastic_plans_need_noise():
    plan = make_plan("dpm_solver_sde_multistep", FRAME, GRID)
    x = torch.randn(2, 4, 8, 8)
    with pytest.raises(NoiseError, match="seed"):
        run(plan, shrink, x)
    with pytest.raises(NoiseError, match="only 1 noise tensors"):
        run(plan, shrink, x, noise=[torch.zeros_like(x)])
    with pytest.raises(NoiseError, match="noise tensor 0 has shape"):
        run(plan, shrink, x, noise=[torch.zeros(1)])
    with pytest.raises(NoiseError, match="3 seeds"):
        run(plan, shrink, x, seed=[1, 2, 3])
    zero = run(plan, shrink, x, noise=GivenNoise([torch.zeros_like(x)] * 6))
    assert torch.isfinite(zero).all()


def test_state_hook_acts_after_every_stage_and_outputs_are_not_recomputed():
    steps = []
    plan = make_plan("ddim", FRAME, GRID)
    result = run(plan, lambda x, s: x * 0, torch.ones(1, 2), hooks=[StateHook(lambda x, stage: steps.append(stage.step) or x + 1)])
    assert steps == list(range(7)) and torch.equal(result, torch.ones(1, 2))  # the exact last step gives D = 0, the hook adds 1


def test_inference_mode_and_gradients():
    plan = make_plan("unipc", FRAME, GRID)
    with torch.inference_mode():
        run(plan, shrink, torch.randn(1, 4, 8, 8))
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert not run(plan, shrink, x.requires_grad_()).requires_grad


def test_a_plan_made_while_it_runs():
    """Stage-by-stage generation: halve sigma until the state's scale, read in between, is small."""

    class Halving:
        hooks = ()
        start = None

        def generate(self, engine: Engine):
            sigma = 16.0
            while float(engine.x.abs().max()) > 0.1:
                k = engine.evaluations
                node = Node(sigma, 1.0, sigma, -math.log(sigma))
                yield Stage(node, Row(x=0.5, m={k: 0.5}))
                engine.free([k])
                sigma /= 2

    result = run(Halving(), lambda x, s: torch.zeros_like(x), torch.full((1, 4), 16.0))
    assert torch.equal(result, torch.full((1, 4), 0.0625))


def test_adaptive_error_tolerance_decides_the_evaluations():
    model = GaussianMixture.make(0)
    calls = {}
    for rtol in (0.2, 0.01):
        log = []
        grid = grids.karras(FRAME, 2, end="zero", t_T=14.6, t_0=0.03)
        plan = make_plan("dpm_solver_adaptive", FRAME, grid, rtol=rtol, atol=rtol / 10)
        run(plan, model.denoiser(FRAME), start_noise(1) * 14.6, callback=log.append)
        calls[rtol] = len(log)
        assert log[0].total is None
    assert calls[0.01] > calls[0.2] > 3


def test_split_schedules_draw_what_the_whole_one_draws():
    frame = frames.edm()
    sigmas = np.array([14.6, 5.0, 2.0, 0.7, 0.2, 0.0])
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64) * 14.6

    def part(s, start):
        return run(make_plan("ddim", frame, s, eta=1.0), shrink, start, seed=5)

    torch.testing.assert_close(part(sigmas[2:], part(sigmas[:3], x)), part(sigmas, x), rtol=0, atol=1e-13)


def test_a_row_computed_ahead_gives_the_same_bits():
    """A hook that may change the state keeps the engine from computing the next stage's state early; the path is the same."""
    for options in ({"order": 3}, {"order": 2, "prediction": "noise"}):
        plan, x = make_plan("unipc", FRAME, GRID, **options), torch.randn(2, 4, 8, 8) * 14.6
        assert torch.equal(run(plan, shrink, x), run(plan, shrink, x, hooks=[StateHook(lambda y, stage: y)]))
        halved = run(plan, shrink, x, hooks=[StateHook(lambda y, stage: y * 0.5 if stage.step == 3 else y)])
        assert not torch.allclose(halved, run(plan, shrink, x), rtol=0, atol=1e-3)


def test_identity_rows_do_nothing():
    assert IDENTITY.is_identity and not Row(x=1.0, m={0: 1.0}).is_identity


class HalfWay:
    """A start transform: one DDIM step from the first node to the second."""

    nfe = 1

    def __init__(self, grid):
        self.source, self.target = grid.node(0), grid.node(1)

    def __call__(self, x, denoise):
        ratio = self.target.sigma / self.source.sigma
        return ratio * x + (1 - ratio) * denoise(x, self.source)


def test_a_start_transform_comes_before_the_first_stage():
    frame = frames.edm()
    grid = grids.karras(frame, 5, end="stop", t_T=10.0, t_0=0.1)
    denoiser = GaussianMixture.make(0).denoiser(frame)
    x = 10.0 * start_noise(3)
    whole = run(make_plan("ddim", frame, grid), denoiser, x)
    rest = replace(make_plan("ddim", frame, grids.from_sigmas(frame, grid.sigma[1:])), start=HalfWay(grid))
    seen = []
    result = run(rest, denoiser, x, callback=lambda p: seen.append((p.index, p.total, round(p.sigma, 6))))
    torch.testing.assert_close(result, whole, rtol=0, atol=1e-13)
    assert rest.nfe == 5 and [s[:2] for s in seen] == [(i, 5) for i in range(5)]
    assert [s[2] for s in seen] == [round(float(s), 6) for s in grid.sigma[:-1]]
    with pytest.raises(Interrupted, match="before evaluation 0"):
        run(rest, denoiser, x, should_stop=lambda: True)

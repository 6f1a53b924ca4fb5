"""Measuring the statistics of DPM-Solver-v3, and their object and files."""

import math
import pickle

import numpy as np
import pytest
import torch
from fewstep.samplers import frames, grids, make_plan, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration import held_out, store
from fewstep.samplers.calibration.derivatives import table_of
from fewstep.samplers.calibration.job import Job
from fewstep.samplers.calibration.measure_statistics import REFINE, cost, lambda_grid, measure_statistics
from fewstep.samplers.calibration.statistics import Statistics, merged, read_official
from fewstep.samplers.errors import CalibrationError, OptionError
from fewstep.samplers.solvers.dpm_v3 import dpm_solver_v3

MODEL = GaussianMixture.make(0)
EDM = frames.edm()
LAM = np.linspace(-2.5, 3.0, 7)


def clean(count, seed=5, shape=(8, 8)):
    """Samples of the mixture's conditional data, float64."""
    g = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    k = torch.multinomial(MODEL.w_cond.float(), count * size, True, generator=g)
    x = MODEL.mu[k] + MODEL.s[k] * torch.randn(count * size, 4, generator=g, dtype=torch.float64)
    return x.reshape(count, size, 4).movedim(-1, 1).reshape(count, 4, *shape).contiguous()


def measured(denoiser=None, frame=EDM, samples=None, lam=LAM, **options):
    denoiser = denoiser or MODEL.denoiser(frame, options.get("guidance", 1.0))
    return Statistics.from_calibration(
        measure_statistics(denoiser, frame, clean(8) if samples is None else samples, lam, **{"guidance": 1.0, "batch": 8, **options})
    )


@pytest.mark.parametrize("derivative", ["jvp", "difference", "stein"])
@pytest.mark.parametrize("frame", [frames.edm(), frames.flow(), frames.linear_vp()], ids=lambda f: f.scaling)
def test_gaussian_data_have_closed_forms(frame, derivative):
    """x_0 ~ N(mu, v): D is linear, l = e^-2lambda/(v + e^-2lambda), and f = -l mu does not vary: s = 0, b = -l' mu."""
    mu, v = torch.tensor([0.5, -1.0]).double().reshape(2, 1, 1), torch.tensor([0.3, 2.0]).double().reshape(2, 1, 1)

    def denoiser(x, sigma):
        s = sigma.reshape(-1, 1, 1, 1)
        a = {"unit": torch.ones_like(s), "flow": 1 - s, "vp": ((1 - s) * (1 + s)).sqrt()}[frame.scaling]
        return mu + a * v / (a * a * v + s * s) * (x - a * mu)

    lam = np.linspace(-2.0, 2.5, 121)
    samples = mu + v.sqrt() * start_noise(0, (4, 2, 4, 4))
    found = measured(denoiser, frame, samples, lam, derivative=derivative)
    power = torch.exp(-2 * torch.from_numpy(lam)).reshape(-1, 1, 1, 1)
    l = power / (v + power)
    if derivative == "stein":  # sampling error: of the noise's and the data's product in l, 64 terms
        assert float((found.l - l).abs().max()) < 0.4
        return
    assert float((found.l - l).abs().max()) < (1e-12 if derivative != "difference" else 1e-9)
    assert torch.equal(found.s, torch.zeros_like(found.s))
    slope = -2 * l * (1 - l)  # dl/dlambda
    inner = slice(1, -1)  # at the ends the difference is one-sided
    assert float((found.b + slope * mu)[inner].abs().max()) < 6e-4


@pytest.mark.parametrize(("guidance", "tolerance"), [(1.0, 3e-5), (7.5, 8e-4)])
def test_differences_agree_with_forward_differentiation(guidance, tolerance):
    a, b = (measured(samples=clean(4), guidance=guidance, derivative=how) for how in ("jvp", "difference"))
    assert float((a.l - b.l).abs().max()) < tolerance
    scale = a.moments.abs().amax((0, 2, 3, 4), keepdim=True)
    assert float(((a.moments - b.moments).abs() / scale).max()) < 0.01


def test_the_three_estimators_agree_within_sampling_error():
    """Means over six seeds, in units of their own standard error."""
    found = {
        how: torch.stack([measured(samples=clean(16, seed=s), seed=s, batch=16, derivative=how).l for s in range(6)])
        for how in ("jvp", "difference", "stein")
    }
    for a, b in (("jvp", "difference"), ("jvp", "stein")):
        error = (found[a].var(0) / 6 + found[b].var(0) / 6).sqrt()
        apart = (found[a].mean(0) - found[b].mean(0)).abs()
        assert float((apart / (error + 1e-5)).max()) < 4.5, (a, b)
    spread = {how: float(values.std(0).mean()) for how, values in found.items()}
    assert spread["stein"] > spread["jvp"]  # why it is not the default


class Rounded:
    """The mixture as a host runs it: the network is told the nearest entry of the model's table."""

    def __init__(self, frame, guidance=1.0):
        self.table = torch.from_numpy(np.exp(-table_of(frame)))
        self.denoiser = MODEL.denoiser(frames.edm(), guidance)

    def __call__(self, x, sigma):
        told = self.table[(sigma.log()[:, None] - self.table.log()).abs().argmin(1)].reshape(-1, 1, 1, 1)
        own = sigma.reshape(-1, 1, 1, 1)
        y = x * ((1 + told**2) / (1 + own**2)).sqrt()  # the network's input x / sqrt(1 + sigma^2) stays
        return x - own * (y - self.denoiser(y, told.flatten())) / told


def test_models_that_round_the_noise_level_are_measured_at_their_table():
    frame = frames.discrete_vp(betas=np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).unit_alpha()
    lam = lambda_grid(frame, 12, rounded=True)
    assert set(lam) <= set(table_of(frame)) and len(lam) >= 11
    wanted = measured(frame=frame, lam=lam, derivative="difference").moments
    scale = wanted.abs().amax((0, 2, 3, 4), keepdim=True)

    def error(**options):
        return float(((measured(Rounded(frame), frame, lam=lam, derivative="difference", **options).moments - wanted).abs() / scale).max())

    assert error(rounded=True) < 0.01 and error() > 0.3
    assert measured(Rounded(frame), frame, lam=lam, rounded=True).meta["derivative"] == "jvp"
    with pytest.raises(CalibrationError, match="models with a table"):
        lambda_grid(frames.edm(), 12, rounded=True)


class Opaque(torch.autograd.Function):
    """A kernel without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize(("change", "chosen"), [
    (lambda x: x, "jvp"), (Opaque.apply, "difference"), (lambda x: x.detach() * 1.0, "difference"),
], ids=["plain", "no forward derivative", "detached"])
def test_auto_falls_back_where_forward_differentiation_fails_or_lies(change, chosen):
    plain = MODEL.denoiser(EDM)
    with torch.inference_mode():  # as hosts run nodes
        found = measured(lambda x, sigma: plain(change(x), sigma), samples=clean(4))
    assert found.meta["derivative"] == chosen
    assert float((found.l - measured(samples=clean(4), derivative="jvp").l).abs().max()) < 3e-5


@pytest.mark.parametrize("derivative", ["auto", "stein"])
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_an_interrupted_measurement_goes_on_to_the_same_bits(tmp_path, derivative, stop):
    options = {"samples": clean(5), "batch": 2, "derivative": derivative, "seed": 3, "check": grids.karras(EDM, 5, end="zero", t_T=10.0, t_0=0.1)}
    total = cost(LAM, 5, derivative, batch=2, check=options["check"])
    whole_job = Job(total, {})
    whole = measured(job=whole_job, **options)
    assert whole_job.done == total
    seen = []

    def interrupt(done, of, curves):
        seen.append(done)
        if len(seen) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(job=Job(total, {"a": 1}, partial=tmp_path / "x.partial", report=interrupt), **options)
    job = Job(total, {"a": 1}, partial=tmp_path / "x.partial")
    again = measured(job=job, **options)
    for name in ("l", "s", "b", "sums"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert again.meta == whole.meta and job.done == total


def test_draws_depend_on_the_seed_alone_and_samples_are_read_as_needed():
    class Stored:
        """Samples in a file: at most a batch of them is ever asked for at once."""

        def __init__(self, values):
            self.values, self.read = values, []

        def __len__(self):
            return len(self.values)

        def __getitem__(self, i):
            self.read.append(i)
            return self.values[i]

    values = clean(6)
    stored = Stored(values)
    a, b = measured(samples=stored, batch=2, derivative="jvp"), measured(samples=values, batch=6, derivative="jvp")
    torch.testing.assert_close(a.sums, b.sums, rtol=1e-12, atol=1e-12)
    assert stored.read[1:] == list(range(6))
    twice = measured(samples=values, count=12, derivative="jvp")
    assert twice.terms == 2 * b.terms and not torch.allclose(twice.l, b.l, atol=1e-6)
    other = measured(samples=values, seed=1, derivative="jvp")
    assert not torch.equal(other.l, b.l)


@pytest.mark.parametrize(("per", "shape", "stat"), [
    ("channel", (4, 8, 8), (4, 1, 1)), ("element", (4, 8, 8), (4, 8, 8)), ("scalar", (4, 8, 8), (1, 1, 1)), ("channel", (4, 2, 3, 3), (4, 1, 1, 1)),
    ("channel", (4, 9), (4, 1)),
], ids=str)
def test_statistics_per_channel_element_or_in_all(per, shape, stat):
    found = measured(samples=clean(4, shape=shape[1:]), per=per, derivative="jvp")
    assert found.l.shape == (7, *stat) and found.sums.shape == (7, 10, *stat)
    assert found.terms == 4 * math.prod(shape) // math.prod(stat)


def test_averages_per_channel_are_what_a_measurement_per_channel_gives():
    element, channel = (measured(per=per, derivative="jvp") for per in ("element", "channel"))
    for name in "lsb":
        torch.testing.assert_close(getattr(element.per_channel(), name), getattr(channel, name), rtol=1e-9, atol=1e-12)


def test_clamping_s_keeps_the_mean_slope_of_f():
    found = measured(guidance=7.5, derivative="jvp")
    f, f_d = found.moments[:, 0], found.moments[:, 1]
    clamped = found.clamped(0.5)
    assert float(clamped.s.abs().max()) == 0.5
    torch.testing.assert_close(clamped.s * f + clamped.b, f_d, rtol=1e-12, atol=1e-12)
    untouched = found.s.abs() < 0.5
    torch.testing.assert_close(clamped.b[untouched], found.b[untouched], rtol=1e-12, atol=1e-12)
    with pytest.raises(CalibrationError, match="needs the moments"):
        Statistics(found.lambda_, found.l, found.s, found.b).clamped(0.5)


def test_the_gain_is_measured_on_starts_that_were_not_used():
    grid = grids.uniform_lambda(frames.linear_vp().unit_alpha(), 6, end="zero", t_0=0.01)
    lam = np.linspace(grid.lambda_[0], 3.5, 61)
    found = measured(frame=grid.frame, samples=clean(8), lam=lam, derivative="jvp", check=grid)
    gain = found.meta["gain"]
    assert gain["steps"] == 6 and 0 < gain["calibrated"] < gain["plain"] / 3
    fine = held_out.refined(grid)
    assert fine.steps > 70 and set(grid.sigma) <= set(fine.sigma) and fine.end == "zero"
    flow = held_out.refined(grids.from_sigmas(frames.flow(), [1.0, 0.6, 0.2, 0.0]), 4)
    assert flow.sigma.tolist()[:5] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6]) and flow.sigma[-1] == 0


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("frame", [frames.linear_vp(), frames.flow()], ids=["vp", "flow"])
def test_errors_on_unseen_noise_are_those_to_the_exact_end(frame, guidance):
    grid = grids.uniform_t(frame, 8, end="zero")
    denoiser, x = MODEL.denoiser(frame, guidance), torch.cat([start_noise(seed) for seed in (1, 2)]) * grid.sigma[0]
    plans = {name: make_plan(name, frame, grid) for name in ("dpm_solver_multistep", "unipc")}
    exact = run(make_plan("unipc", frame, grids.uniform_t(frame, 1500, end="zero"), order=3), denoiser, x)
    for name, error in held_out.errors(plans, denoiser, grid, x, REFINE).items():
        assert error == pytest.approx(float((run(plans[name], denoiser, x) - exact).square().mean()), rel=0.1)


def test_two_seeds_merge_by_adding_sums():
    a, b = (measured(seed=seed, derivative="jvp") for seed in (0, 1))
    both = merged(a, b)
    assert torch.equal(both.sums, a.sums + b.sums) and both.meta["samples"] == 16 and both.meta["seeds"] == [0, 1]
    assert float((both.l - (a.l + b.l) / 2).abs().max()) < 1e-12
    with pytest.raises(CalibrationError, match="same seed"):
        merged(a, both)
    with pytest.raises(CalibrationError, match="differ in guidance"):
        merged(a, measured(seed=2, guidance=3.0, derivative="jvp"))
    with pytest.raises(CalibrationError, match="without their sums"):
        merged(a, Statistics(a.lambda_, a.l, a.s, a.b))


def test_a_file_comes_back_as_it_was_and_drives_the_solver(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folders", [tmp_path])
    found = measured(derivative="jvp")
    reference = store.save(found.calibration(), tmp_path / "a.safetensors")
    again = Statistics.of(reference)
    assert torch.equal(again.sums, found.sums) and torch.equal(again.s, found.s) and again.meta == found.meta
    grid = grids.karras(EDM, 5, end="zero", t_T=10.0, t_0=0.1)
    plans = [dpm_solver_v3(grid, statistics=value) for value in (reference, found, found.calibration())]
    texts = [plan.describe() for plan in plans]
    assert texts[0] == texts[1] == texts[2]
    store.save(store.Calibration("statistics", {"l": torch.zeros(3, 1)}), tmp_path / "b.safetensors")
    with pytest.raises(CalibrationError, match="no tensor 'lambda'"):
        Statistics.of("b.safetensors")
    with pytest.raises(CalibrationError, match="of statistics is needed"):
        Statistics.of(store.Calibration("ratios", {}))


@pytest.mark.parametrize(("options", "words"), [
    ({"samples": clean(1)}, "at least 2 samples, got 1"), ({"samples": []}, "at least 2 samples, got 0"), ({"count": 1}, "got 1"),
    ({"lam": [1.0, 0.0, -1.0]}, "that rise"), ({"lam": [0.0, 1.0]}, "at least 3"), ({"lam": [0.0, math.inf, 1.0]}, "finite"),
    ({"denoiser": lambda x, s: x * float("nan")}, "returned NaN or infinity at sigma 12.1825, samples 0 to 7"),
])
def test_bad_measurements_are_named(options, words):
    with pytest.raises(CalibrationError, match=words):
        measured(**{"derivative": "difference", **options})


@pytest.mark.parametrize("options", [{"per": "pixel"}, {"derivative": "adjoint"}, {"batch": 0}])
def test_bad_options_are_named(options):
    with pytest.raises(OptionError, match=f"{next(iter(options))} is"):
        measured(**options)


ONE = torch.ones(3, 4, 1, 1)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Statistics(np.arange(3.0), ONE, ONE[:2], ONE), "for each"), (lambda: Statistics(np.arange(2.0), ONE[:2], ONE[:2], ONE[:2]), "at least 3"),
    (lambda: Statistics(np.arange(3.0), ONE, ONE, torch.ones(3, 5, 1, 1)), "do not fit each other"),
    (lambda: Statistics(np.array([0.0, 1.0, 1.0]), ONE, ONE, ONE), "rise strictly"),
    (lambda: Statistics(np.arange(3.0), ONE, ONE * float("nan"), ONE), "s holds NaN"),
])
def test_inconsistent_statistics_are_refused(make, words):
    with pytest.raises(CalibrationError, match=words):
        make()


def official(folder, count=13, **arrays):
    folder.mkdir()
    values = {name: np.random.default_rng(i).normal(size=(count, 4, 2, 2)).astype(np.float32) for i, name in enumerate("lsb")}
    values |= arrays
    np.savez(folder / "l.npz", l=values["l"])
    np.savez(folder / "sb.npz", s=values["s"], b=values["b"])
    return values


def test_the_authors_files_are_read(tmp_path):
    frame = frames.linear_vp()
    values = official(tmp_path / "0.0001_12_1024")
    found = read_official(tmp_path / "0.0001_12_1024", frame)
    assert found.lambda_[[0, -1]] == pytest.approx([float(frame.lambda_(1.0)), float(frame.lambda_(1e-4))])
    assert np.diff(found.lambda_) == pytest.approx(np.diff(found.lambda_)[0])
    for name in "lsb":
        assert np.array_equal(getattr(found, name).numpy(), values[name].astype(np.float64))
    assert found.meta["samples"] == 1024 and found.moments is None
    official(tmp_path / "mine")
    assert read_official(tmp_path / "mine", frame, t_0=0.01).lambda_[-1] == pytest.approx(float(frame.lambda_(0.01)))


def test_bad_official_files_are_named(tmp_path):
    frame = frames.linear_vp()
    with pytest.raises(CalibrationError, match="no official statistics"):
        read_official(tmp_path, frame)
    official(tmp_path / "0.001_20_8")
    with pytest.raises(CalibrationError, match="promises 20 steps of lambda, but its arrays have 12"):
        read_official(tmp_path / "0.001_20_8", frame)
    official(tmp_path / "uneven", s=np.zeros((12, 4, 2, 2)))
    with pytest.raises(CalibrationError, match="for each"):
        read_official(tmp_path / "uneven", frame)
    for name, content in (("cut", (tmp_path / "uneven" / "l.npz").read_bytes()[:200]), ("pickled", pickle.dumps({"l": 1}))):
        official(tmp_path / name)
        (tmp_path / name / "l.npz").write_bytes(content)
        with pytest.raises(CalibrationError, match="no official statistics"):
            read_official(tmp_path / name, frame)

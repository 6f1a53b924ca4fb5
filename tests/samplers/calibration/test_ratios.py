"""The search of compensation ratios, its polynomial, and what a calibration of ratios is good for."""

import hashlib
import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, run
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.calibration import polynomial, scalar_search, store
from fewstep.samplers.calibration.calibrate_ratios import calibrate_ratios, cost
from fewstep.samplers.calibration.held_out import refined
from fewstep.samplers.calibration.job import Job
from fewstep.samplers.calibration.ratios import check_recipe, trial_grid
from fewstep.samplers.calibration.search_ratios import (
    Settings,
    draw_starts,
    official_targets,
    official_trajectory,
    search_ratios,
)
from fewstep.samplers.errors import CalibrationError, CalibrationWarning, OptionError, PlanError
from fewstep.samplers.solvers.unipc import unipc

FRAME = frames.discrete_vp(betas=np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).unit_alpha()
MODEL = GaussianMixture.make(0)
LIKE = torch.zeros(4, 4, 4, dtype=torch.float64)
UNIPC3 = Recipe("unipc", {"order": 3})


def denoiser(scale=7.5, frame=FRAME):
    return MODEL.denoiser(frame, scale)


def grid_of(steps=5, frame=FRAME):
    return grids.uniform_t(frame, steps, end="zero")


def fixed_starts(grid, like, seed, count):
    """Starts that do not change with the pack's noise: where a search ends, and whether it helps, depends on a few samples."""
    keys = (hashlib.blake2b(struct.pack("<Qiqq", seed + i, -9, 512, 512), digest_size=8, person=b"fewstep") for i in range(count))
    draws = [torch.randn(like.shape, generator=torch.Generator().manual_seed(int.from_bytes(k.digest(), "little"))) for k in keys]
    node = grid.node(0)
    return torch.stack(draws).to(like) * math.hypot(node.alpha, node.sigma)


def calibrate(recipe=UNIPC3, grid=None, model=None, job=None, samples=6, held_out=4, **options):
    grid = grid or grid_of()
    starts, held = (fixed_starts(grid, LIKE, seed, count) for seed, count in ((100, samples), (200, held_out)))
    return calibrate_ratios(model or denoiser(), recipe, grid, starts, held, guidance=7.5, job=job, **options)


def error(recipe, grid, ratios, scale=7.5):
    """Mean-square error to the exact end on seeds of its own."""
    x = draw_starts(grid, LIKE, 300, 8)
    exact = run(unipc(refined(grid, 100)), denoiser(scale), x)
    plan = recipe.corrected("dynamic_compensation", ratios=ratios).resolve(FRAME, grid)
    return float((run(plan, denoiser(scale), x) - exact).square().mean())


@pytest.mark.parametrize("method", ["line", "gradient"])
@pytest.mark.parametrize(("recipe", "times"), [(UNIPC3, 20), (Recipe("dpm_solver_multistep"), 2), (Recipe("dpm_solver_multistep").corrected("unic"), 2)], ids=lambda v: getattr(v, "label", v))
def test_searched_ratios_help_on_other_noise(recipe, times, method):
    grid = grid_of()
    made = calibrate(recipe, settings=Settings(method=method))
    assert made.meta["helps"] and made.meta["gain"]["calibrated"] < made.meta["gain"]["plain"] / times
    assert error(recipe, grid, made) < error(recipe, grid, [1.0] * 5) / times
    assert made.tensors["ratios"].tolist()[:2] == [1.0, 1.0] and torch.equal(made.tensors["ratios"], made.tensors["searched"])


def test_both_methods_find_the_same_minimum():
    line, slope, finer = (calibrate(settings=Settings(method=m, iterations=n)).tensors["searched"] for m, n in (
        ("line", 16), ("gradient", 8), ("gradient", 30)))
    torch.testing.assert_close(slope, finer, rtol=0, atol=1e-3)
    torch.testing.assert_close(line, finer, rtol=0, atol=5e-3)


def test_where_there_is_no_gain_it_says_so_and_recommends_none():
    grid, recipe = grids.uniform_lambda(FRAME, 6, end="zero"), Recipe("dpm_solver_multistep")
    made = calibrate(recipe, grid, denoiser(1.0))
    assert not made.meta["helps"] and made.meta["gain"]["calibrated"] > made.meta["gain"]["plain"] > 0
    assert made.tensors["ratios"].tolist() == [1.0] * 6 and made.tensors["searched"].tolist() != [1.0] * 6
    assert error(recipe, grid, made, 1.0) == error(recipe, grid, [1.0] * 6, 1.0)


def test_dualfast_below_is_searched_with_it():
    grid, recipe = grid_of(), Recipe("unipc").corrected("dualfast", c_max=0.2)
    made = calibrate(recipe, settings=Settings(method="line"))
    assert made.meta["helps"]
    assert error(recipe, grid, made) < error(recipe, grid, [1.0] * 5) / 2


def test_thresholding_takes_part():
    a, b = (calibrate(Recipe("unipc", {"thresholding": on}), settings=Settings(method="line")).tensors["searched"] for on in (True, False))
    assert not torch.equal(a, b)


class Stop(Exception):
    """What a user's interruption raises."""


@pytest.mark.parametrize("rule", ["interpolated", "official"])
@pytest.mark.parametrize("method", ["auto", "line"])
def test_an_interrupted_search_goes_on_to_the_same_bits(tmp_path, method, rule):
    settings = Settings(method=method, rule=rule, iterations=5)
    options = {"settings": settings, "samples": 3, "held_out": 2, "batch": 2}
    recipe = Recipe("unipc", {"order": 2, "disable_corrector": (0,)})
    total = cost(recipe, grid_of(), 3, 2, settings)
    whole = calibrate(recipe, job=(job := Job(total, {})), **options)
    assert job.done == total
    calls, places, partial = [], [], tmp_path / "x.partial"

    def report(done, of, curves):
        places.append(done)
        if len(places) % 19 == 0:
            raise Stop

    interruptions = 0
    while True:
        job = Job(total, {"seed": 1}, partial=partial, report=report)
        try:
            again = calibrate(recipe, job=job, model=lambda x, s: calls.append(len(x)) or denoiser()(x, s), **options)
            break
        except Stop:
            interruptions += 1
    assert interruptions > 2 and places == sorted(places) and places[-1] == total == job.done
    assert again.meta == whole.meta and all(torch.equal(again.tensors[k], whole.tensors[k]) for k in whole.tensors)
    if method == "line":
        assert sum(calls) == total


def test_a_model_without_gradients_is_searched_by_lines():
    def detached(x, sigma):
        return denoiser()(x.detach(), sigma).detach()

    def failing(x, sigma):
        if x.requires_grad:
            raise NotImplementedError("no derivative of this kernel")
        return denoiser()(x, sigma)

    lines = calibrate(settings=Settings(method="line")).tensors["searched"]
    for model in (detached, failing):
        job = Job(cost(UNIPC3, grid_of(), 6, 4, Settings()), {})
        assert torch.equal(calibrate(model=model, job=job).tensors["searched"], lines)
        assert job.done == job.total == cost(UNIPC3, grid_of(), 6, 4, Settings(method="line"))
        with pytest.raises(CalibrationError, match=r"cannot be differentiated \(.*use method 'line'"):
            calibrate(model=model, settings=Settings(method="gradient"))


def test_hosts_that_run_in_inference_mode():
    with torch.inference_mode():
        grid = grid_of()
        starts, held = fixed_starts(grid, LIKE, 100, 6), fixed_starts(grid, LIKE, 200, 4)
        assert starts.is_inference()
        made = calibrate_ratios(denoiser(), UNIPC3, grid, starts, held, guidance=7.5)
    assert torch.equal(made.tensors["searched"], calibrate().tensors["searched"])


def test_batches_and_prompts_do_not_matter_but_are_respected():
    whole = calibrate(settings=Settings(method="line")).tensors["searched"]
    parts = calibrate(settings=Settings(method="line"), batch=2).tensors["searched"]
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-8)
    sizes = {"a": [], "b": []}

    def named(name):
        return lambda x, sigma: sizes[name].append(len(x)) or denoiser()(x, sigma)

    grid = grid_of()
    plan = UNIPC3.resolve(FRAME, grid)
    starts = fixed_starts(grid, LIKE, 100, 5)
    search_ratios([named("a"), named("b")], plan, starts, [starts] * 5, settings=Settings(method="line", iterations=3), batch=2)
    assert set(sizes["a"]) == {2, 1} and set(sizes["b"]) == {2} and len(sizes["a"]) == 2 * len(sizes["b"])


def test_single_precision_models():
    grid = grid_of()
    starts, held = (fixed_starts(grid, LIKE.float(), seed, count) for seed, count in ((100, 6), (200, 4)))
    made = calibrate_ratios(denoiser(), UNIPC3, grid, starts, held, guidance=7.5)
    assert starts.dtype == torch.float32
    torch.testing.assert_close(made.tensors["searched"], calibrate().tensors["searched"], rtol=0, atol=1e-3)


def test_the_file_fits_its_steps_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folders", [tmp_path])
    made = calibrate(settings=Settings(method="line"))
    reference = store.save(made, tmp_path / "r.safetensors")
    recipe = UNIPC3.corrected("dynamic_compensation", ratios=reference)
    again = Recipe.from_json(recipe.to_json())
    assert again.resolve(FRAME, grid_of()).describe().split("\n", 1)[1] == (
        UNIPC3.corrected("dynamic_compensation", ratios=made).resolve(FRAME, grid_of()).describe().split("\n", 1)[1])
    vp = replace(FRAME, scaling="vp")
    assert again.resolve(vp, grids.uniform_t(vp, 5, end="zero")).nfe == 5  # the same noise levels in another frame
    with pytest.raises(CalibrationError, match="for 5 steps, not for 6"):
        again.resolve(FRAME, grid_of(6))
    with pytest.raises(CalibrationError, match=r"other noise levels: node 1"):
        again.resolve(FRAME, grids.karras(FRAME, 5, end="zero"))
    with pytest.raises(CalibrationError, match="dc_order 2, not 1"):
        UNIPC3.corrected("dynamic_compensation", ratios=reference, dc_order=1).resolve(FRAME, grid_of())
    shifted = again.corrected("time_shift", window=20, cutoff=100.0).resolve(FRAME, grid_of())  # plans on moved nodes
    assert shifted.late
    check_recipe(made, UNIPC3)
    with pytest.raises(CalibrationError, match=r"searched for unipc\(order=3\), not for unipc\(order=2\)"):
        check_recipe(made, Recipe("unipc", {"order": 2}))
    np.testing.assert_allclose(trial_grid(again).lambda_, grid_of().lambda_, atol=1e-9)
    with pytest.raises(CalibrationError, match="holds no compensation ratios"):
        UNIPC3.corrected("dynamic_compensation", ratios=store.Calibration("ratios", {}, {})).resolve(FRAME, grid_of())
    json.dumps(dict(made.meta), allow_nan=False)


def test_flow_models_from_pure_noise():
    frame = frames.flow()
    grid = grids.uniform_t(frame, 6, end="zero")
    starts, held = (fixed_starts(grid, LIKE, seed, count) for seed, count in ((100, 6), (200, 4)))
    made = calibrate_ratios(denoiser(frame=frame), UNIPC3, grid, starts, held, guidance=7.5)
    assert made.meta["helps"] and made.meta["clock"][0] == 1.0
    recipe = UNIPC3.corrected("dynamic_compensation", ratios=made)
    assert trial_grid(recipe).sigma.tolist() == pytest.approx(grid.sigma.tolist())


def test_bad_input_is_named():
    grid = grid_of()
    plan, starts = UNIPC3.resolve(FRAME, grid), draw_starts(grid, LIKE, 0, 3)

    def breaks(x, sigma):
        D = denoiser()(x, sigma)
        return D * math.nan if float(sigma[0]) < 1 else D

    with pytest.raises(CalibrationError, match=r"NaN or infinity at sigma 0\.\d+, samples 0 to 5"):
        calibrate(model=breaks)
    with pytest.raises(CalibrationError, match="at least one start and two held-out"):
        calibrate(held_out=1)
    with pytest.raises(CalibrationError, match="states for 4 steps, the plan has 5"):
        search_ratios(denoiser(), plan, starts, [starts] * 4)
    with pytest.raises(CalibrationError, match="use those it was made from"):
        search_ratios(denoiser(), plan, starts, [starts[:2]] * 5)
    with pytest.raises(CalibrationError, match="no reference for 5"):
        official_targets(denoiser(), FRAME, plan, starts, steps=4)
    with pytest.raises(CalibrationError, match="counts in training steps"):
        official_trajectory(frames.flow(), plan.nodes, 200)
    for recipe, error_, words in (
        (Recipe("dpm_solver_sde_multistep"), PlanError, "adds noise: set eta to 0"), (Recipe("deis_rk"), PlanError, "one evaluation per step"),
        (UNIPC3.corrected("dynamic_compensation", ratios=[1.0] * 5), PlanError, "compensated already"),
        (UNIPC3.corrected("time_shift"), PlanError, "without time shift"), (Recipe("dpm_solver_adaptive"), PlanError, "chooses its steps"),
    ):
        with pytest.raises(error_, match=words):
            calibrate(recipe)
    for bad in ({"method": "newton"}, {"rule": "best"}, {"dc_order": 0}, {"iterations": 2}):
        with pytest.raises(OptionError):
            Settings(**bad)


@pytest.mark.parametrize("search", [scalar_search.line, scalar_search.descend])
@pytest.mark.parametrize(("f", "slope", "least"), [
    (lambda r: (r - 1.7) ** 2, lambda r: 2 * (r - 1.7), 1.7), (lambda r: (r - 0.93) ** 4 + (r - 0.93) ** 2, lambda r: 4 * (r - 0.93) ** 3 + 2 * (r - 0.93), 0.93),
    (lambda r: math.cosh(4 * (r + 0.4)), lambda r: 4 * math.sinh(4 * (r + 0.4)), -0.4), (lambda r: abs(r - 1.31) ** 1.5, lambda r: 1.5 * math.copysign(abs(r - 1.31) ** 0.5, r - 1.31), 1.31),
    (lambda r: -r, lambda r: -1.0, scalar_search.HIGH), (lambda r: r, lambda r: 1.0, scalar_search.LOW), (lambda r: (r - 1) ** 2, lambda r: 2 * (r - 1), 1.0),
])
def test_searches_of_one_number_find_the_minimum(search, f, slope, least):
    history = []
    for _ in range(12):
        place = search(history)
        history.append((place, f(place), slope(place)))
    assert scalar_search.best(history) == pytest.approx(least, abs=0.01)
    assert f(scalar_search.best(history)) <= f(1.0)


def test_adamw_is_torchs():
    place, history = torch.ones((), dtype=torch.float64, requires_grad=True), []
    optimiser = torch.optim.AdamW([place], lr=0.1)
    for _ in range(30):
        assert scalar_search.adamw(history) == pytest.approx(float(place.detach()), rel=1e-13)
        loss = (place - 0.4) ** 2 * (place + 1.1) ** 2
        optimiser.zero_grad()
        loss.backward()
        history.append((float(place.detach()), float(loss.detach()), float(place.grad)))
        optimiser.step()


SURVEY = [(g, n) for g in (1.0, 4.5, 7.5, 12.0) for n in (5, 6, 8, 10, 15, 20)]


def test_a_polynomial_is_found_again_from_its_own_ratios():
    searched = {(g, n): polynomial.evaluate(polynomial.SD21, g, n) for g, n in SURVEY}
    made = polynomial.fit_polynomial(searched, meta={"solver": "unipc"})
    assert made.meta["residual"] < 1e-9 and made.meta["fitted_steps"] == [5, 20] and made.meta["fitted_guidance"] == [1.0, 12.0]
    for g, n in [*SURVEY, (9.0, 7), (6.0, 12)]:
        np.testing.assert_allclose(
            polynomial.evaluate(made.tensors["polynomial"].numpy(), g, n), polynomial.evaluate(polynomial.SD21, g, n), atol=1e-6)
    np.testing.assert_allclose(made.tensors["polynomial"], polynomial.SD21, rtol=1e-5)


def test_a_fitted_polynomial_is_a_calibration():
    made = polynomial.fit_polynomial({(g, n): polynomial.evaluate(polynomial.SD21, g, n) for g, n in SURVEY})
    recipe = UNIPC3.corrected("dynamic_compensation", ratios=made, guidance=6.0)
    wanted = UNIPC3.corrected("dynamic_compensation", guidance=6.0)
    a, b = (r.resolve(FRAME, grid_of(8)) for r in (recipe, wanted))
    for one, other in zip(a.rows(), b.rows(), strict=True):
        assert dict(one.m) == pytest.approx(dict(other.m), abs=1e-6)
    assert trial_grid(recipe).steps == 20
    with pytest.warns(CalibrationWarning, match="fitted for 5 to 20 steps and guidance 1 to 12"):
        UNIPC3.corrected("dynamic_compensation", ratios=made, guidance=13.0).resolve(FRAME, grid_of(8))
    with pytest.raises(OptionError, match="needs the guidance scale"):
        UNIPC3.corrected("dynamic_compensation", ratios=made).resolve(FRAME, grid_of(8))


def test_polynomials_that_cannot_be():
    for table in (np.ones((4, 3, 2)), [1.0] * 36, np.full((4, 3, 3), np.nan)):
        with pytest.raises(OptionError, match="36 finite numbers"):
            polynomial.evaluate(table, 7.5, 8)
    few = {(g, n): polynomial.evaluate(polynomial.SD21, g, n) for g, n in SURVEY if n < 8}
    for searched in (few, {key: ratios for key, ratios in few.items() if key[0] < 6}, {}):
        with pytest.raises(CalibrationError, match=r"determine \d+ of the polynomial's 36"):
            polynomial.fit_polynomial(searched)
    with pytest.raises(CalibrationError, match="expected 6 finite"):
        polynomial.fit_polynomial({(7.5, 6): [1.0] * 5})


def test_the_published_polynomial_belongs_to_its_solver():
    check_recipe("sd21", Recipe("unipc", {"order": 2, "disable_corrector": (0,)}))
    with pytest.warns(CalibrationWarning, match="fitted for unipc"):
        check_recipe("sd21", Recipe("unipc"))

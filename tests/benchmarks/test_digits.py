"""The benchmark of the digit models: the model that hosts run, the shipped calibrations, what is measured anew, and the tables."""

import numpy as np
import pytest
import torch
from fewstep.benchmarks import digits, digits_tables, peers_diffusers, problems, shipped, tables
from fewstep.benchmarks.methods import Unfit
from fewstep.demo import data
from fewstep.samplers import Recipe, run
from fewstep.samplers.calibration import store
from fewstep.samplers.solvers.fitted import fitted_grid


@pytest.fixture(scope="module")
def given():
    return digits.problem("eps", torch.arange(2), 7)


def row(package, method, nfe, error, grid="karras", **more):
    return {"problem": "digits_eps", "guidance": 2.0, "package": package, "method": method, "grid": grid, "nfe": nfe,
            "evaluations": nfe, "steps": nfe, "error": error, "frechet": "", "recognised": "", **more}


def test_the_model_is_told_trained_steps_as_in_a_host(given):
    """At a trained step the answer is the exact problem's, and between two it is that of the nearer one."""
    exact, at = problems.PROBLEMS["digits_eps"](2), float(given.frame.sigma(given.frame.time.t_of_model_time(400.0)))
    x, sigma = given.noise * at, torch.tensor([at, at], dtype=torch.float64)
    torch.testing.assert_close(given.make(3.0)(x, sigma), exact.make(3.0)(x, sigma), rtol=0, atol=2e-4)
    # a third of a step further the exact problem's network is told so, the host's is not: its noise prediction stays
    off = sigma * (float(given.frame.sigma(given.frame.time.t_of_model_time(400.3))) / at)
    scale = ((1 + off**2) / (1 + sigma**2)).sqrt().reshape(-1, 1, 1, 1)  # the network sees x / (1 + sigma^2)^(1/2)
    noises = [[(y - p.make(3.0)(y, s)) / s.reshape(-1, 1, 1, 1) for y, s in ((x, sigma), (x * scale, off))] for p in (given, exact)]
    assert float((noises[0][0] - noises[0][1]).abs().max()) < 1e-4 < 1e-3 < float((noises[1][0] - noises[1][1]).abs().max())


def test_plain_solvers_stand_beside_diffusers_of_the_same_names(given):
    pytest.importorskip("diffusers")
    names = [(m.package, m.name.split("(")[0]) for m in digits.plain_methods() if m.grids(given)]
    assert [name for package, name in names if package == "diffusers"] == [
        "DPMSolverMultistep", "DPMSolverMultistep", "UniPCMultistep", "UniPCMultistep", "DEISMultistep"]
    assert sum(package == "fewstep" for package, _ in names) == 6
    made = peers_diffusers.scheduler("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}, given, 5)
    np.testing.assert_allclose(given.sigmas("trailing", 5), made.sigmas.numpy(), rtol=0.03)


def test_a_shipped_plan_runs_on_its_own_levels_and_steps_alone(given):
    found = {m.name: m for m in shipped.methods(given, 2.0)}
    method = found["fitted plan"]
    (grid,) = method.grids(given)
    kind, reference = grid.split()
    calibration = store.load(reference, "plan")
    own = fitted_grid(calibration, given.frame)

    def half(x, sigma):
        return 0.5 * x

    wanted = run(Recipe("fitted_plan", {"calibration": reference}).resolve(given.frame, own), half, given.noise * own.node(0).sigma)
    assert kind == "own" and torch.equal(method.sample(given, half, grid, calibration.meta["steps"]), wanted)
    with pytest.raises(Unfit):
        method.sample(given, half, grid, calibration.meta["steps"] + 1)
    statistics = {m.name: m for m in shipped.methods(given, 1.0)}["DPM-Solver-v3"]
    assert [g.split()[0] for g in statistics.grids(given)] == list(shipped.FREE)
    assert not any("fitted" in m.name for m in shipped.methods(given, 2.5))


def test_only_what_is_missing_is_measured(given, monkeypatch):
    """Rows of calibrations that are gone or changed are dropped; each method keeps its best grid."""
    plain = [m for m in digits.plain_methods() if m.package == "fewstep"][:2]
    new = next(m for m in shipped.methods(given, 2.0) if m.name == "fitted plan")
    monkeypatch.setattr(digits, "every_method", lambda *args: [*plain, new])
    monkeypatch.setattr(digits, "solve", lambda *args: torch.zeros(2, 4, 8, 8, dtype=torch.float64))
    asked = []

    def measure(problem, guidance, methods, nfes):
        asked.extend(m.name for m in methods)
        for error, grid in ((0.2, "a"), (0.1, "b")):
            yield row(new.package, new.name, 5, error, f"{grid} x")
        yield {**row(new.package, new.name, 6, 0.0), "evaluations": 5}

    monkeypatch.setattr(digits, "measure", measure)
    known = [row("fewstep", plain[0].name, 5, 0.3), row("fewstep", plain[1].name, 5, 0.4),
             row(shipped.PACKAGE, "fitted plan", 5, 0.05, "own digits-eps-plan-cfg2.safetensors@0000000000000000")]
    found = digits.cell(given, 2.0, known)
    assert asked == ["fitted plan"]
    assert [(r["method"], r["error"]) for r in found] == [(plain[0].name, 0.3), (plain[1].name, 0.4), ("fitted plan", 0.1)]
    again = row(shipped.PACKAGE, "fitted plan", 5, 0.05, new.grids(given)[0])
    assert digits.cell(given, 2.0, [*known[:2], again]) == [*known[:2], again] and asked == ["fitted plan"]


def test_the_frechet_distance_of_held_out_digits_to_themselves_is_zero():
    quality = digits.Quality()
    found = quality.of(data.load()[1].latents())
    assert abs(found["frechet"]) < 1e-3 and found["recognised"] == 1.0
    far = quality.of(torch.zeros(360, 4, 8, 8) + torch.randn(360, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert far["frechet"] > 5 and far["recognised"] < 0.5


def test_the_table_says_how_near_the_goal_is(tmp_path):
    rows = [
        row("fewstep", "a", 5, 0.4), row("diffusers", "b", 5, 0.3), row("fewstep", "a", 8, 0.15), row("fewstep", "a", 10, 0.1),
        row("diffusers", "b", 10, 0.2), row(shipped.PACKAGE, "fitted plan", 5, 0.15, "own x.safetensors@00", frechet=0.5, recognised=1.0),
    ]
    header, (line,) = digits_tables.goal(rows)
    values = dict(zip(header, line, strict=True))
    assert values["best plain, 5"] == "diffusers b, karras" and values["best calibrated, 5"] == "fitted plan"
    assert values["of plain 5"] == pytest.approx(0.25) and values["of plain 10"] == pytest.approx(2.25)
    assert values["plain solvers need"] == "8"
    assert digits_tables.needed(rows, 0.01) == "more than 10"
    _, lines = digits_tables.distances(rows)
    assert [line[3:] for line in lines] == [["fewstep, calibrated fitted plan", pytest.approx(0.0225), 0.5, "100.0 %"]]
    digits_tables.write(tmp_path, rows)
    assert tables.read_csv(tmp_path / "digits.csv") == rows
    text = (tmp_path / "digits.md").read_text()
    assert "0.022 (own)" in text and "| eps | 2 | fewstep a | 0.16 (karras) | 0.022 (karras) | 0.01 (karras) |" in text

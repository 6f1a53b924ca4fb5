"""The advisor's rules: whole, followable, measured; and what goes before them."""

import itertools
import json
from pathlib import Path

import pytest
from fewstep.samplers import Recipe, frames, grids
from fewstep.samplers.advice import FAMILIES, FILE, Facts, advise, gain_of, grid_label, recipe_of, rule_for, rules
from fewstep.samplers.calibration import store
from fewstep.samplers.errors import FewStepError, OptionError
from fewstep.samplers.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
FRAMES = {"vp": frames.linear_vp().unit_alpha(), "flow": frames.flow()}
SHIPPED = ROOT / "demo" / "calibration"


def ratios(**changes):
    """A calibration of ratios for 5 steps at guidance 4 on the noise model."""
    made = store.read(SHIPPED / "digits-eps-ratios-cfg4.safetensors")
    return store.Calibration("ratios", made.tensors, {**made.meta, **changes}, made.model)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_a_rule_can_be_followed_over_its_whole_range(rule):
    (low, high), (least, most) = rule.guidance, rule.steps
    assert rule.family in FAMILIES and 0 <= low < high and 1 <= least <= most
    options = {key: value for key, value in rule.grid.items() if key != "kind"}
    for steps in {least, min(most, least + 3), min(most, 40)}:
        plan = rule.recipe.resolve(FRAMES[rule.family], grids.GRIDS[rule.grid["kind"]](FRAMES[rule.family], steps, end="zero", **options))
        assert isinstance(plan, Plan) and plan.nfe == steps and not plan.stochastic, "one evaluation a step, as it was compared"
    assert 1 <= rule.why.count(".") <= 3 and len(rule.why) < 160
    assert rule.source == "python -m fewstep.benchmarks.advice"


@pytest.mark.parametrize("family", FAMILIES)
def test_one_rule_for_every_number_of_steps_and_guidance(family):
    steps, scales = (1, 2, 3, 4, 5, 6, 7, 9, 10, 14, 15, 50, 10_000), (0.0, 1.0, 1.5, 1.6, 4.0, 5.5, 5.6, 7.5, 100.0)
    for n, guidance in itertools.product(steps, scales):
        holding = [rule.name for rule in rules() if rule.holds(family, n, guidance)]
        assert len(holding) == 1, (n, guidance, holding)
        assert rule_for(family, n, guidance).name == holding[0]
    assert not {rule.name for rule in rules() if rule.family == family} - {rule_for(family, n, g).name for n, g in itertools.product(steps, scales)}


def test_rules_are_measured_and_gain():
    """The numbers of the file are those of the benchmark's last run, and no rule is worse than what people usually take."""
    rows = (ROOT / "docs" / "results" / "advice.md").read_text("utf-8")
    for rule in rules():
        m, line = rule.measured, f"| {rule.name} | {rule.recipe.label} | {grid_label(rule.grid)} |"
        for part in (m, rule.unseen):
            assert part["error"] <= 1.0 and 0 <= part["worse"] <= part["cells"] and part["worst"] >= part["error"]
            line += f" {part['error']:.3g} | {part['worst']:.3g} | {part['worse']} of {part['cells']} |"
        assert f"{line}\n" in rows
        usual = json.loads(FILE.read_text("utf-8"))["usual"][rule.family]
        if (rule.recipe, rule.grid) != (recipe_of(usual["recipe"]), usual["grid"]) and rule.steps[1] > 1:
            assert m["error"] < 0.9, (rule.name, "no reason to have it")


def test_more_steps_bring_no_lower_order():
    """Within a range of guidance the order never falls as steps are added."""
    for family, guidance in itertools.product(FAMILIES, (1.0, 4.0, 7.5)):
        orders = [rule_for(family, n, guidance).recipe.order for n in (1, 2, 4, 6, 10, 15)]
        assert orders[0] == 1 and orders[-1] >= 3 >= orders[1] and sorted(orders[:3]) == orders[:3]


@pytest.mark.parametrize("scaling", ["unit", "flow"])
def test_advice_is_the_rule_where_nothing_is_calibrated(scaling):
    frame = FRAMES["flow" if scaling == "flow" else "vp"]
    found = advise(Facts(frame, 8, 4.0))
    rule = rule_for("flow" if scaling == "flow" else "vp", 8, 4.0)
    assert (found.recipe, found.grid, found.guidance, found.sigmas) == (rule.recipe, rule.grid, 4.0, ())
    assert found.why == rule.why and rule.source in found.evidence and "times the error of" in found.evidence


def test_a_flow_models_own_shift_is_kept():
    found = advise(Facts(frames.flow(), 8, 4.0, shift=3.0))
    assert found.grid == {"kind": "shifted", "shift": 3.0} and "shift of its own, 3" in found.evidence
    assert advise(Facts(FRAMES["vp"], 8, 4.0, shift=3.0)).grid["kind"] != "shifted"


def test_a_distilled_model_is_sampled_in_its_own_way():
    found = advise(Facts(FRAMES["vp"], 4, 7.5, distilled=True, calibrations=(("x", ratios()),)))
    assert (found.recipe.solver, found.guidance) == ("consistency", 1.0) and "Load Distilled LoRA" in found.evidence


def test_the_best_calibration_that_fits_goes_before_the_rules():
    store.add_folder(SHIPPED)
    good, better = (f"{name}.safetensors@{'0' * 16}" for name in ("good", "better"))
    made = ratios()
    facts = Facts(FRAMES["vp"], 5, 4.0, calibrations=((good, made), (better, ratios(gain={"plain": 0.1, "calibrated": 0.05}))))  # less error, though less of a gain
    assert gain_of(made, facts) == pytest.approx(0.0573041 / 0.2702072, rel=1e-5)  # the file's own numbers
    found = advise(facts)
    assert found.recipe == Recipe.from_json(made.meta["recipe"]).corrected("dynamic_compensation", ratios=better, dc_order=2)
    assert found.sigmas == tuple(made.meta["sigmas"]) and found.grid is None and found.guidance == 4.0
    assert "better.safetensors" in found.why and "0.5 times" in found.evidence


def test_a_fitted_plan_comes_with_its_levels():
    reference = store.reference_of(SHIPPED / "digits-eps-plan-cfg2.safetensors")
    made = store.read(SHIPPED / "digits-eps-plan-cfg2.safetensors")
    found = advise(Facts(FRAMES["vp"], 5, 2.1, calibrations=((reference, made),)))
    assert found.recipe == Recipe("fitted_plan", {"calibration": reference})
    assert found.guidance == 2.0, "the guidance of the file, not one near it"
    assert found.sigmas == tuple(made.meta["sigmas"])


@pytest.mark.parametrize("changes, steps, guidance", [
    ({}, 6, 4.0), ({}, 5, 5.0), ({"helps": False}, 5, 4.0), ({"gain": {"plain": 1.0, "calibrated": 1.2}}, 5, 4.0),
    ({"scaling": "flow"}, 5, 4.0), ({"gain": None}, 5, 4.0), ({"recipe": "{}"}, 5, 4.0),
])
def test_a_calibration_that_does_not_fit_is_passed_over(changes, steps, guidance):
    found = advise(Facts(FRAMES["vp"], steps, guidance, calibrations=(("x.safetensors@0123456789abcdef", ratios(**changes)),)))
    assert found.recipe == rule_for("vp", steps, guidance).recipe


def test_bad_facts_are_named():
    for wrong in ({"steps": 0}, {"steps": 2.5}, {"guidance": -1.0}, {"guidance": float("nan")}):
        with pytest.raises(FewStepError, match="steps" if "steps" in wrong else "guidance"):
            Facts(FRAMES["vp"], **{"steps": 8, "guidance": 4.0, **wrong})
    with pytest.raises(OptionError, match="family"):
        rule_for("vq", 8, 4.0)
    with pytest.raises(OptionError, match="no rule for a vp model"):
        rule_for("vp", 8, 4.0, ())


def test_the_file_says_what_was_compared():
    data = json.loads(FILE.read_text("utf-8"))
    assert set(data["usual"]) == set(FAMILIES) and all(entry["words"] for entry in data["usual"].values())

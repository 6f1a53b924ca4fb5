"""Plans and recipes as objects: validation, exact files, JSON, listed options, and how bad input is named."""

import json
import math

import pytest
import torch
from fewstep.samplers import Plan, Recipe, Row, Stage, frames, grids, make_plan, solver_names, solver_options
from fewstep.samplers.correctors.unic import unic
from fewstep.samplers.errors import FewStepError, OptionError, PlanError, ScheduleError
from fewstep.samplers.grids import Node
from fewstep.samplers.hooks import StateHook
from fewstep.samplers.plan import NoiseTerm
from fewstep.samplers.plan_io import load_plan, save_plan

NODE, END = Node(1.0, 1.0, 1.0, 0.0), Node(0.5, 1.0, 0.5, math.log(2))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Plan((), (NODE, END)), "at least one stage"),
    (lambda: Plan((Stage(NODE, Row(m={1: 1.0})),), (NODE, END)), "stage 0, carry reads output 1"),
    (lambda: Plan((Stage(NODE, Row(x=1.0), Row(m={0: 1.0})),), (NODE, END)), "stage 0, predict reads output 0"),
    (lambda: Plan((Stage(NODE, Row(x=1.0)),), (NODE, END), Row(m={3: 1.0})), "last row reads output 3"),
    (lambda: Plan((Stage(Node(1.0, 1.0, math.nan, 0.0), Row(x=1.0)),), (NODE, END)), "evaluates at sigma nan"),
    (lambda: Row(x=math.inf), "coefficient is inf"), (lambda: Row(m={0: math.nan}), "coefficient is nan"),
    (lambda: Row(x=torch.tensor([math.nan])), "holds NaN"), (lambda: Row(x="1"), "expected a Python float or a tensor"),
    (lambda: Row(noise=NoiseTerm(math.inf, 1.0, 0.0)), "noise coefficient"),
])
def test_inconsistent_plans_are_refused(make, words):
    with pytest.raises(PlanError, match=words):
        make()


@pytest.mark.parametrize("name", [n for n in solver_names() if n != "dpm_solver_adaptive"])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_saved_plans_come_back_exactly(name, suffix, tmp_path):
    frame = frames.flow()
    plan = make_plan(name, frame, [1.0, 0.7, 0.4, 0.2, 0.0], **({"order": 3, "disable_corrector": (1,)} if name == "unipc" else {}))
    save_plan(plan, tmp_path / f"plan{suffix}")
    again = load_plan(tmp_path / f"plan{suffix}")
    assert again.describe() == plan.describe() and again.recipe == plan.recipe and again.nodes == plan.nodes
    for a, b in zip(plan.rows(), again.rows(), strict=True):
        assert (a.x, dict(a.m), a.x_T, a.noise) == (b.x, dict(b.m), b.x_T, b.noise)
    assert [s.carry is s.predict for s in again.stages] == [s.carry is s.predict for s in plan.stages]
    assert list(tmp_path.iterdir()) == [tmp_path / f"plan{suffix}"]


def test_tensor_coefficients_are_saved(tmp_path):
    c = torch.randn(3, 1, 1, dtype=torch.float64)
    plan = Plan((Stage(NODE, Row(x=c, m={0: 1 / 3}, offset=c * 2)),), (NODE, END))
    save_plan(plan, tmp_path / "plan.safetensors")
    row = load_plan(tmp_path / "plan.safetensors").stages[0].carry
    assert torch.equal(row.x, c) and torch.equal(row.offset, c * 2) and row.m[0] == 1 / 3
    with pytest.raises(PlanError, match="save it as .safetensors"):
        save_plan(plan, tmp_path / "plan.json")
    assert "tensor[3, 1, 1]" in plan.describe()


def test_unreadable_plan_files_are_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "c.json").write_text("[1")
    (tmp_path / "d.pt").write_bytes(b"")
    for name, words in {"a.safetensors": "not a readable plan", "b.json": "format None", "c.json": "not a readable", "d.pt": "read from", "e.json": "no plan file"}.items():
        with pytest.raises(PlanError, match=words):
            load_plan(tmp_path / name)
    plan = Plan((Stage(NODE, Row(x=1.0)),), (NODE, END), hooks=(StateHook(lambda x, s: x),))
    with pytest.raises(PlanError, match="cannot be saved"):
        save_plan(plan, tmp_path / "f.json")


def test_recipes_are_immutable_json_and_equal_by_value():
    recipe = Recipe("dpm_solver_multistep", {"order": 3}).corrected("unic", order=3, disable=[0])
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe and hash(again) == hash(recipe) and json.loads(recipe.to_json())["fewstep_recipe"] == 1
    with pytest.raises(TypeError):
        recipe.options["order"] = 2
    plan = recipe.resolve(frames.edm(), [10.0, 5.0, 2.0, 1.0, 0.0])
    assert plan.recipe == recipe and plan.nfe == 4 and "unic" in plan.label


@pytest.mark.parametrize("name", solver_names())
def test_defaults_resolve_and_options_are_listed(name):
    options = solver_options(name)
    plan = make_plan(name, frames.flow(), grids.uniform_t(frames.flow(), 6, end="zero"), **{k: o.default for k, o in options.items()})
    assert plan.describe()
    for option in options.values():
        assert option.choices is None or option.default in option.choices


EDM_GRID = [10.0, 3.0, 1.0, 0.0]


@pytest.mark.parametrize(("name", "options", "words"), [
    ("unipic", {}, "unknown solver 'unipic'.*did you mean 'unipc'"), ("unipc", {"ordr": 2}, "no option 'ordr'.*did you mean 'order'"),
    ("unipc", {"variant": "bh3"}, "variant is 'bh3'"), ("unipc", {"prediction": "velocity"}, "prediction is 'velocity'"),
    ("unipc", {"order": 4}, "order 4 needs at least 4 steps, the grid has 3"), ("unipc", {"order": 0}, "order is 0"),
    ("unipc", {"order": True}, "order is True"), ("unipc", {"order": 2, "disable_corrector": (3,)}, "disable_corrector holds 3"),
    ("unipc", {"prediction": "noise", "thresholding": True}, "thresholding acts on x_0"),
    ("unipc", {"denoise_to_zero": True}, "already ends at sigma 0"),
    ("dpm_solver_multistep", {"order": 7}, "order is 7"), ("dpm_solver_multistep", {"solver_type": "heun"}, "solver_type is 'heun'"),
    ("dpm_solver_multistep", {"lower_order_final": "yes"}, "lower_order_final is 'yes'"),
    ("dpm_solver_singlestep", {"order": 4}, "order is 4"), ("dpm_solver_singlestep", {"order": 3, "allocation": "fixed"}, "fewer than one step"),
    ("dpm_solver_adaptive", {"order": 1}, "order is 1"), ("dpm_solver_adaptive", {"atol": 0.0}, "atol is 0"), ("dpm_solver_adaptive", {"theta": 2.0}, "theta 2"),
    ("dpm_solver_sde_multistep", {"eta": -1.0}, "eta is -1"), ("dpm_solver_sde_multistep", {"s_noise": math.nan}, "s_noise is nan"),
    ("sa_solver", {"predictor_order": 5}, "predictor_order is 5"), ("sa_solver", {"corrector_order": -1}, "corrector_order is -1"),
    ("sa_solver", {"tau": math.nan}, "tau is nan"), ("sa_solver", {"s_noise": -1.0}, "s_noise is -1"), ("sa_solver", {"sde_end": -1.0}, "sde_end is -1"),
    ("sa_solver", {"sde_start": 1.0, "sde_end": 2.0}, "sde_end is 2.0, above sde_start 1.0: give the larger one"),
    ("dpm_solver_sde_singlestep", {"r": 0.0}, "r is 0"), ("ddim", {"eta": 1.5}, "eta is 1.5"), ("ddim", {"prediction": "noise"}, "prediction is 'noise'"),
    ("deis_ab", {"ab_order": 4, "basis": "rho"}, "ab_order is 4"), ("deis_ab", {"ab_order": 3, "basis": "rho"}, "needs at least 4 steps"),
    ("deis_ab", {"basis": "log_rho", "quadrature": "official"}, "not in the official code"),
    ("deis_rk", {"tableau": "5rk"}, "tableau is '5rk'"), ("ipndm", {"order": 5}, "order is 5"),
])
def test_bad_options_are_named(name, options, words):
    with pytest.raises(OptionError, match=words):
        make_plan(name, frames.edm(), EDM_GRID, **options)


def test_tab_without_a_time_map_is_refused():
    with pytest.raises(ScheduleError, match="basis 't' needs the model's time"):
        make_plan("deis_ab", frames.edm(), EDM_GRID)


def test_a_grid_of_another_frame_is_refused():
    with pytest.raises(OptionError, match="belongs to a flow frame"):
        make_plan("ddim", frames.edm(), grids.uniform_t(frames.flow(), 3, end="zero"))


def test_correctors_refuse_what_they_cannot_correct():
    frame = frames.edm()
    grid = grids.karras(frame, 6, end="zero", t_T=14.6, t_0=0.03)
    for name, options, words in [
        ("deis_rk", {}, "one evaluation per step"), ("dpm_solver_sde_multistep", {}, "adds noise"), ("unipc", {}, "corrected already"),
        ("sa_solver", {}, "adds noise"), ("sa_solver", {"tau": 0.0}, "corrected already"), ("ddim", {"prediction": "flow"}, "stores flow"),
    ]:
        with pytest.raises(PlanError, match=words):
            unic(make_plan(name, frame, grid, **options))
    with pytest.raises(OptionError, match="chooses its steps while running"):
        Recipe("dpm_solver_adaptive").corrected("unic").resolve(frame, grid)
    with pytest.raises(OptionError, match="unknown corrector"):
        Recipe("ddim").corrected("unicorn")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fewstep_recipe":1,"solver":"ddim","options":{},"correctors":[{}]}'])
def test_bad_recipe_texts_are_named(text):
    with pytest.raises(FewStepError, match="not a FewStep recipe"):
        Recipe.from_json(text)


def test_recipes_of_a_later_version_are_refused():
    with pytest.raises(OptionError, match="update FewStep"):
        Recipe.from_json('{"fewstep_recipe":99,"solver":"ddim","options":{},"correctors":[]}')

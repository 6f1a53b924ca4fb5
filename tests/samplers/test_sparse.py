"""Plans whose stages are made when they are asked for: the same stages as of whole plans, and no others."""

import numpy as np
import pytest
from fewstep.samplers import Recipe, frames, grids, solver_names
from fewstep.samplers.sparse import SparseStages, sparse, stages_of

VP = frames.discrete_vp(betas=np.linspace(1e-4, 0.02, 1000))
RECIPES = [
    *(Recipe(name) for name in solver_names() if name != "dpm_solver_adaptive"), Recipe("deis_rk", {"tableau": "4rk"}),
    Recipe("pndm", {"order": 2}), Recipe("dpm_solver_singlestep", {"order": 2}), Recipe("unipc", {"denoise_to_zero": True}),
    Recipe("dpm_solver_multistep", {"order": 3}).corrected("unic", order=3), Recipe("unipc").corrected("dualfast"),
]


def numbers(row):
    return float(row.x), {j: float(c) for j, c in row.m.items()}, float(row.x_T), row.noise


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.label)
@pytest.mark.parametrize("end", ["stop", "zero"])
def test_the_stages_are_those_of_the_whole_plan(recipe, end):
    if end == "zero" and recipe.options.get("denoise_to_zero"):
        return  # a plan that already ends with the exact step
    grid = grids.uniform_t(VP, 9, end=end)
    whole = recipe.resolve(VP, grid)
    with sparse():
        part = recipe.resolve(VP, grid)
    assert len(part.stages) == len(whole.stages) and part.nodes == whole.nodes
    for k in reversed(range(len(whole.stages))):
        one, other = part.stages[k], whole.stages[k]
        assert (one.node, one.kind, one.step, one.mix) == (other.node, other.kind, other.step, other.mix)
        assert numbers(one.predict) == numbers(other.predict) and numbers(one.carry) == numbers(other.carry)
        assert (one.carry is one.predict) == (other.carry is other.predict)
    assert numbers(part.final) == numbers(whole.final)


def test_only_what_is_looked_at_is_made():
    made = []

    def make(i, first):
        made.append((i, first))
        return tuple(range(10 * i, 10 * i + 2 + i))

    with sparse():
        stages = stages_of([2, 3, 4], make)
    assert isinstance(stages, SparseStages) and len(stages) == 9 and not made
    assert (stages[3], stages[4], stages[-1]) == (11, 12, 23) and made == [(1, 2), (2, 5)]
    assert list(stages) == list(stages_of([2, 3, 4], make)) == [0, 1, 10, 11, 12, 20, 21, 22, 23]


def test_a_plan_that_is_only_drawn_makes_no_candidates(monkeypatch):
    """Time shift plans once for every step, and once more for every training time only when a run begins."""
    from fewstep.samplers.correctors import time_shift

    grid, plans = grids.uniform_t(VP, 12, end="stop"), []
    moved = time_shift.moved
    monkeypatch.setattr(time_shift, "moved", lambda *args: plans.append(None) or moved(*args))
    plan = Recipe("unipc").corrected("time_shift", cutoff=0.0).resolve(VP, grid)
    assert plan.describe() and plan.peak_latents and len(plans) == 11
    hook = plan.hooks[-1].begin({})
    assert len(plans) == 11 + sum(len(choice.candidates) for choice in (*hook.before.values(), *hook.after.values()))
    before = len(plans)
    plan.hooks[-1].begin({})
    assert len(plans) == before

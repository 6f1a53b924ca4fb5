"""Plots and tables show the plan's own numbers; thresholding against numpy's quantile."""

import io

import numpy as np
import pytest
import torch
from fewstep.samplers import frames, grids, make_plan, optional, plotting
from fewstep.samplers.errors import MissingDependencyError, OptionError, PlanError
from fewstep.samplers.hooks import DynamicThresholding, Hook, hook_from_data, hook_to_data
from PIL import Image

FRAME = frames.edm()
GRID = grids.karras(FRAME, 6, end="zero", t_T=14.6, t_0=0.03)


@pytest.mark.parametrize(("name", "options"), [
    ("unipc", {"order": 3}), ("dpm_solver_singlestep", {"order": 3}), ("dpm_solver_sde_singlestep", {}), ("ddim", {}),
])
def test_the_plot_is_a_png_and_its_table_holds_the_rows(name, options, tmp_path):
    plan = make_plan(name, FRAME, GRID, **options)
    png = plotting.plot_plan(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes() == png
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and min(image.size) > 300 and len(set(image.convert("L").tobytes())) > 20
    array = plotting.plan_image(plan)
    np.testing.assert_array_equal(np.round(array * 255), np.asarray(image.convert("RGB")))
    values, rows, columns = plotting.coefficient_table(plan)
    expected = [r for s in plan.stages for r in (s.predict, s.carry) if not r.is_identity and not (r is s.carry and r is s.predict)]
    expected += [] if plan.final.is_identity else [plan.final]
    assert len(rows) == len(expected)
    for line, row in zip(values, expected, strict=True):
        shown = {c: v for c, v in zip(columns, line, strict=True) if np.isfinite(v)}
        wanted = {"X": row.x, **{f"M_{j}": c for j, c in row.m.items()}, **({"xi": row.noise.coefficient} if row.noise else {})}
        assert shown == pytest.approx({k: v for k, v in wanted.items() if v})


def test_the_description_names_every_number_of_a_small_plan():
    text = make_plan("dpm_solver_multistep", FRAME, [4.0, 1.0, 0.0], order=2).describe()
    assert "order 2, 2 evaluations, peak 3 latents" in text
    assert "0.25 X + 0.75 M_0" in text and text.splitlines()[-1].split() == ["end", "0", "inf", "result", "X"]
    noisy = make_plan("ddim", FRAME, [4.0, 1.0], eta=1.0).describe()
    assert "stochastic" in noisy and " xi" in noisy


def test_thresholding_against_numpy():
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 2
    out = DynamicThresholding().denoised(None, x, x.clone())
    for sample, given in zip(out, x, strict=True):
        s = max(np.quantile(given.abs().double().numpy(), 0.995), 1.0)
        np.testing.assert_allclose(sample, given.double().clamp(-s, s) / s, rtol=1e-5, atol=1e-6)
    inside = x / x.abs().max() * 0.9
    assert torch.equal(DynamicThresholding().denoised(None, inside, inside.clone()), inside)
    half = DynamicThresholding().denoised(None, x.bfloat16(), x.bfloat16())
    assert half.dtype == torch.bfloat16 and float(half.abs().max()) <= 1.0


def test_hooks_as_data():
    hook = DynamicThresholding(0.9, 2.0)
    assert hook_from_data(hook_to_data(hook)) == hook
    with pytest.raises(PlanError, match="unknown hook"):
        hook_from_data({"hook": "dynamic_threshold"})
    with pytest.raises(PlanError, match="cannot be saved"):
        hook_to_data(Hook())
    for options in ({"ratio": 1.5}, {"max_value": 0.0}):
        with pytest.raises(OptionError):
            DynamicThresholding(**options)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(optional.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    for need, package in ((optional.pyplot, "matplotlib"), (optional.scipy_special, "scipy")):
        with pytest.raises(MissingDependencyError, match=f"pip install {package}"):
            need()

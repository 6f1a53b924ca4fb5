"""FewStep Advisor: the rules on a host's models, and calibrations that are found by themselves."""

import math

import numpy as np
import pytest
import torch
from fewstep.host.embedded import EmbeddedHost
from fewstep.nodes.advisor import FewStepAdvisor
from fewstep.nodes.host import use_host
from fewstep.nodes.sampling import recipe_of
from fewstep.samplers import advice
from fewstep.samplers.advice import gain_of, rule_for
from fewstep.samplers.errors import FewStepError
from scipy.stats import beta


def advise(model, steps=8, cfg=4.0, distilled=False, use_calibrations=True):
    found = FewStepAdvisor().advise(model, steps, cfg, distilled, use_calibrations)
    assert found["ui"] == {"text": [found["result"][3]]}
    return found["result"]


@pytest.mark.parametrize("form, family", [("eps", "vp"), ("v", "vp"), ("flow", "flow")])
@pytest.mark.parametrize("steps, cfg", [(1, 1.0), (3, 7.5), (5, 1.0), (8, 4.0), (20, 7.5)])
def test_the_rule_of_the_models_family(host, form, family, steps, cfg):
    sampler, sigmas, guidance, text = advise(host.demo_checkpoint(form)[0], steps, cfg)
    rule = rule_for(family, steps, cfg)
    assert recipe_of(sampler) == rule.recipe and guidance == cfg
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and sigmas.dtype == torch.float32 and bool((sigmas.diff() < 0).all())
    if (form, steps) == ("flow", 8):  # what the schedule nodes call alpha, beta and start
        np.testing.assert_allclose(sigmas[:-1], 0.001 + 0.998999 * beta.ppf(1 - np.arange(8) / 8, 0.9, 0.8), rtol=1e-5)
    head, why, evidence = text.split("\n")
    shape = {("flow", 1): " (shift 3.0)", ("flow", 8): " (alpha 0.9, beta 0.8, start 0.999999)"}.get((form, steps), "")
    assert head == f"{rule.recipe.label} on the schedule {rule.grid['kind']}{shape}, cfg {cfg:g}." and (why, evidence) == (rule.why, rule.evidence)


def test_it_beats_the_usual_choice_on_a_model_with_a_known_solution(host, text, gaussian):
    """The Gaussian model's ODE ends at mean + SPREAD * (x_T / sigma_max), to first order in 1/sigma_max^2."""
    from fewstep.nodes.schedule import schedule
    from fewstep.nodes.solvers import FewStepDPMSolverMultistep

    model, latent = host.demo_checkpoint("eps")[0], {"samples": torch.zeros(1, 4, 8, 8)}

    def end(sampler, sigmas):
        return host.sample(model, 3, 1.0, sampler, sigmas, text("7"), text(""), latent)["samples"].double()

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    spread, top = gaussian.SPREAD, float(gaussian.SIGMAS[-1])
    start = noise * (1 + top**2) ** 0.5
    exact = 0.7 + (start - 0.7) * spread / (spread**2 + top**2) ** 0.5
    (usual,) = FewStepDPMSolverMultistep().build(order=2, prediction="data", solver_type="dpmsolver", lower_order_final="published", thresholding=False)
    sampler, sigmas, _, _ = advise(model, 10, 1.0)
    advised, plain = ((end(*run) - exact).square().mean() for run in ((sampler, sigmas), (usual, schedule(model, "karras", 10))))
    assert advised < 0.5 * plain


def test_a_distilled_model_gets_re_noising_at_guidance_1(host):
    sampler, sigmas, guidance, text = advise(host.demo_checkpoint("eps")[0], 4, 7.5, distilled=True)
    assert recipe_of(sampler).solver == "consistency" and guidance == 1.0 and len(sigmas) == 5 and "Load Distilled LoRA" in text


@pytest.mark.parametrize("form", ["eps", "flow"])
def test_a_calibration_of_this_model_is_found_and_another_models_is_not(form, tmp_path, host, monkeypatch):
    with use_host(EmbeddedHost(tmp_path, models_directory=tmp_path / "models")) as real:
        model = real.demo_checkpoint(form)[0]
        sampler, sigmas, guidance, text = advise(model, 5, 2.0)
        assert recipe_of(sampler).solver == "fitted_plan" and f"digits-{form}-plan-cfg2.safetensors" in text and guidance == 2.0
        assert recipe_of(sampler).references and len(sigmas) == 6
        assert recipe_of(advise(model, 5, 4.0)[0]).solver == "fitted_plan", "the least error of two, whatever each was compared with"
        with monkeypatch.context() as patch:
            patch.setattr(advice, "gain_of", lambda made, facts: math.inf if made.purpose == "plan" else gain_of(made, facts))
            with_ratios = advise(model, 5, 4.0)
        assert [name for name, _ in recipe_of(with_ratios[0]).correctors] == ["dynamic_compensation"]
        assert recipe_of(advise(model, 5, 2.0, use_calibrations=False)[0]) == rule_for("flow" if form == "flow" else "vp", 5, 2.0).recipe
        assert recipe_of(advise(model, 6, 2.0)[0]) == rule_for("flow" if form == "flow" else "vp", 6, 2.0).recipe
    assert recipe_of(advise(host.demo_checkpoint(form)[0], 5, 2.0)[0]).solver != "fitted_plan", "the Gaussian network is another model"


def test_a_new_calibration_runs_the_node_again(host, tmp_path):
    host.models_directory = tmp_path / "models"
    before = FewStepAdvisor.IS_CHANGED(use_calibrations=True, model=None)
    assert before == FewStepAdvisor.IS_CHANGED(use_calibrations=True) and FewStepAdvisor.IS_CHANGED(use_calibrations=False) == ""
    folder = host.calibration_folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "advisor-new.safetensors").write_bytes(b"damaged")
    assert FewStepAdvisor.IS_CHANGED(use_calibrations=True) != before
    advise(host.demo_checkpoint("eps")[0], 5, 2.0)  # a damaged file is passed over


def test_bad_numbers_are_named(host):
    with pytest.raises(FewStepError, match="steps is 0"):
        advise(host.demo_checkpoint("eps")[0], 0)

"""UniPC, by the official solver."""

import torch
from fewstep.samplers import make_plan
from fewstep.samplers.correctors.unic import unic
from fewstep.samplers.hooks import DynamicThresholding

from .case import check_nodes, frame_and_grid


def accepts(head, settings):
    return settings.get("prediction") in ("data_prediction", "noise_prediction") and "variant" in settings


def run(case):
    s = case.set
    frame, grid, start = frame_and_grid(case, s["steps"])
    check_nodes(case, grid)
    variant = {"vary_coeff": "vary_coeff_official"}.get(s["variant"], s["variant"])
    prediction, lower = s["prediction"].removesuffix("_prediction"), s.get("lower_order_final", True)
    disable = tuple(s.get("disable_corrector", ()))
    if s.get("predictor") == "dpmpp_2m":
        plan = make_plan(
            "dpm_solver_multistep", frame, grid, order=min(2, s["order"]), prediction=prediction,
            lower_order_final="always" if lower else False,
        )
        plan = unic(plan, order=s["order"], variant=variant, disable=disable, lower_order_final=lower)
    else:
        plan = make_plan(
            "unipc", frame, grid, order=s["order"], variant=variant, prediction=prediction, lower_order_final=lower,
            corrector=s.get("corrector", True), disable_corrector=disable,
            thresholding=s.get("thresholding", False), denoise_to_zero=s.get("denoise_to_zero", False),
        )
    result, states = case.run(plan, frame, start)
    case.compare(result, 1e-10)
    if "states" in case:
        # the engine reports the corrected state of node i after evaluation i
        torch.testing.assert_close(torch.stack(states[1:]), case["states"], rtol=0, atol=1e-10 * case["states"].abs().max())
        torch.testing.assert_close(torch.stack(case.predicted), case["x0_at_evals"], rtol=0, atol=1e-9)
    if s.get("thresholding"):
        assert any(isinstance(hook, DynamicThresholding) for hook in plan.hooks)

"""Time shift: the authors' PNM and DPM-Solver files, the rule of their DEIS wrapper, and the paper's algorithm with DDIM."""

import numpy as np
import torch
from fewstep.samplers import Recipe, frames, grids
from fewstep.samplers import run as run_plan
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.correctors.late_rows import Choice
from fewstep.samplers.correctors.time_shift import Levels

SOLVERS = {
    "euler": ("ddim", {"prediction": "eps"}), "ddpm": ("ddim", {"prediction": "eps"}), "s_pndm": ("pndm", {"order": 2}),
    "f_pndm": ("pndm", {"order": 4}),
}


def accepts(head, settings):
    return "betas" in settings and ("cutoff" in settings or "shift" in settings)


def run(case):
    frame = frames.discrete_vp(case.tensors[f"alphas_cumprod_{case.set['betas']}"])
    if "t_in" in case:
        return rule(case, frame)
    kind = "paper" if "timesteps" in case.set else "target" if "requested_steps" in case.set else "dpm_solver"
    recipe, grid = {"paper": paper, "target": target, "dpm_solver": dpm_solver}[kind](case, frame)
    if case.set.get("shift", True):
        recipe = recipe.corrected(
            "time_shift", window=case.set["window"], cutoff=float(case.set["cutoff"]), wiring=kind, clamp=False
        )
    plan = recipe.resolve(frame, grid)
    told = []
    model = GaussianMixture.make(case.set["mixture_seed"], scale=case.set["mixture_scale"]).denoiser(frame, case.set["guidance"])

    def denoiser(x, sigma):
        told.append(frame.time.model_time(frame.t_of_sigma(sigma.numpy())))
        return model(x, sigma)

    start = case.tensors["x_T"] * case.set.get("x_T_scale", 1.0)
    states = []
    noise = list(case["noise"]) if "noise" in case else None

    def note(progress):
        if progress.stage.carry.m:  # the last stage of a step
            states.append(progress.x.clone())

    result = run_plan(plan, denoiser, start, noise=noise, callback=note)
    expected = case["t_model"].numpy()
    if kind == "dpm_solver":  # continuous times there
        expected = 1000 * expected - 1
    elif kind == "target":  # the model of these cases takes half-integer labels down
        expected = np.floor(expected)
    np.testing.assert_allclose(np.stack(told), expected, rtol=0, atol=1e-6)
    unstable = case.set.get("solver") == "f_pndm" and case.set["guidance"] == 7.5
    tolerance = 1e-7 if unstable else 1e-9
    torch.testing.assert_close(result, case["x_final"], rtol=0, atol=tolerance)
    if "states" in case:
        torch.testing.assert_close(torch.stack(states), case["states"], rtol=0, atol=tolerance)


def rule(case, frame):
    levels = Levels.of(grids.uniform_t(frame, 10, end="stop"))
    for t_in, variances, expected in zip(case["t_in"], case["var"], case["t_out"], strict=True):
        node = grids.node_at_lambda(frame, float(levels.lambdas[int(t_in)]))
        centre = levels.centre(node, case.set["cutoff"])
        if centre is None:
            assert expected.tolist() == [float(t_in)] * len(expected)
            continue
        choice = Choice("t", node, levels.candidates(centre, case.set["window"]), node)
        a = (variances / 2).sqrt()
        index = choice.choose(torch.stack([a, -a], 1), {})  # two values a and -a have the unbiased variance 2 a^2
        chosen = [float(frame.time.model_time(choice.candidates[i].t)) for i in index]
        np.testing.assert_allclose(chosen, expected, atol=1e-6)


def paper(case, frame):
    return Recipe("ddim"), grids.from_times(frame, (np.array(case.set["timesteps"]) + 1) / 1000, end="zero")


def target(case, frame):
    name, options = SOLVERS[case.set["solver"]]
    if "eta" in case.set:
        options = {**options, "eta": case.set["eta"]}
    skip = 1000 // case.set["requested_steps"]
    labels = np.append(np.arange(0, 1000, skip)[:-1][::-1] + 1, 0)
    return Recipe(name, options), grids.from_times(frame, (labels + 1) / 1000, end="stop")


def dpm_solver(case, frame):
    lower = "always" if case.set["steps"] < 15 else False  # the older official rule
    recipe = Recipe("dpm_solver_multistep", {"order": 2, "prediction": "noise", "lower_order_final": lower})
    return recipe, grids.uniform_t(frame, case.set["steps"], end="stop", t_T=1.0, t_0=1e-3)

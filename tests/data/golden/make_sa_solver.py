"""Makes sa_solver.safetensors: SA-Solver by the paper's code, diffusers and ComfyUI, on the analytic mixture with given noise.

    COMFYUI_PATH=checkout SA_SOLVER_PATH=checkout-of-scxue/SA-Solver python tests/data/golden/make_sa_solver.py

in a Python that has diffusers and ComfyUI's packages, with the folder above the checkout on PYTHONPATH under the name fewstep.
Written with diffusers 0.42.1, ComfyUI 0.8.0 and commit 876f3dd of the paper's code.
"""

import importlib.util
import json
import math
import os
from pathlib import Path
from unittest import mock

import diffusers
import torch
from fewstep.benchmarks import peers_sigmas
from fewstep.samplers import frames, grids
from fewstep.samplers.analytic import GaussianMixture, start_noise
from safetensors.torch import save_file

SHAPE, SCALE, DRAWS = (1, 4, 4, 4), 2.0, 11
NOISE = torch.cat([start_noise(100 + k, SHAPE) for k in range(DRAWS)])
X_T = start_noise(0, SHAPE)
MODEL = GaussianMixture.make(0)


def draws():
    """The given noise, one after the other, for any function that is asked for noise."""
    rest = iter(NOISE)
    return lambda *args, **kwargs: next(rest)[None].clone()


def official(steps, p, c, tau):
    """``sample_few_steps`` on the linear VP schedule; its first draw is never used."""
    path = Path(os.environ["SA_SOLVER_PATH"]) / "sa_solver.py"
    spec = importlib.util.spec_from_file_location("official_sa_solver", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.tqdm = lambda x: x
    frame = frames.linear_vp()
    denoise = MODEL.denoiser(frame, SCALE)

    def eps(x, t):
        alpha, sigma = float(frame.alpha(float(t[0]))), float(frame.sigma(float(t[0])))
        return (x - alpha * denoise(x, torch.tensor([sigma]))) / sigma

    solver = module.SASolver(eps, module.NoiseScheduleVP("linear"))
    with mock.patch.object(torch, "randn_like", draws()):
        final = solver.sample_few_steps(
            X_T, lambda t: tau if 0.2 <= t <= 0.8 else 0.0, steps, t_end=1e-3, predictor_order=p, corrector_order=c)
    nodes = grids.uniform_t(frame, steps, end="stop", t_0=1e-3)
    rho = [node.rho for node in nodes.nodes]
    start, end = (float(frame.sigma(t) / frame.alpha(t)) for t in (0.8, 0.2))
    return final, nodes.sigma, {
        "frame": "vp", "sde_start": start, "sde_end": end, "draws": [k for k in range(1, steps + 1) if start >= rho[k] >= end]}


def of_diffusers(steps, p, c, tau):
    """SASolverScheduler from x_0 predictions; its tau is that of the time a step starts at, and it draws in every step."""
    made = diffusers.SASolverScheduler(
        predictor_order=p, corrector_order=c, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="sample", timestep_spacing="linspace", tau_func=lambda t: tau if 200 <= t <= 800 else 0)
    made.set_timesteps(steps)
    made.sigmas = made.sigmas.double()
    rho = made.sigmas.tolist()
    denoise = MODEL.denoiser(frames.edm(), SCALE)
    x = X_T * rho[0] / math.hypot(1, rho[0])
    with mock.patch.object(diffusers.schedulers.scheduling_sasolver, "randn_tensor", draws()):
        for k, t in enumerate(made.timesteps):
            x = made.step(denoise(x * math.hypot(1, rho[k]), torch.tensor([rho[k]])), t, x).prev_sample
    noisy = [k for k, t in enumerate(made.timesteps) if 200 <= t <= 800]
    return x * math.hypot(1, rho[-1]), rho, {
        "frame": "edm", "sde_start": 1.01 * rho[noisy[0] + 1], "sde_end": 0.99 * rho[noisy[-1] + 1], "draws": noisy}


def of_comfyui(steps, p, c, tau, frame="edm", end="zero", simple=False):
    """``sample_sa_solver`` with its default interval."""
    samplers = peers_sigmas.comfyui()
    sampling = peers_sigmas.model_sampling(mock.Mock(flow=frame == "flow"))
    here = getattr(frames, frame)()
    sigma = (
        grids.shifted(here, steps, end=end, t_T=0.97, t_0=0.03, shift=2.0) if frame == "flow"
        else grids.karras(here, steps, end=end, t_T=14.6, t_0=0.03)).sigma
    start, stop = (float(sampling.percent_to_sigma(percent)) for percent in (0.2, 0.8))
    noise, inside = draws(), importlib.import_module("comfy.k_diffusion.sa_solver")
    final = samplers.sampler_object("sa_solver").sampler_function(
        peers_sigmas.Model(MODEL.denoiser(here, SCALE), sampling), X_T * sigma[0], torch.from_numpy(sigma.copy()), extra_args={}, disable=True,
        tau_func=inside.get_tau_interval_func(start, stop, eta=tau), noise_sampler=noise, predictor_order=p, corrector_order=c,
        simple_order_2=simple)
    used = sum(start >= s >= stop for s in sigma[1:])
    rho = [s / (1 - s) if frame == "flow" else s for s in (start, stop)]
    return final, sigma, {
        "frame": frame, "sde_start": rho[0], "sde_end": rho[1], "draws": list(range(used)), "simple_order_2": simple,
        "lower_order_final": end == "zero"}


CASES = [
    ("official", official, 6, 3, 4, 1.0, {}), ("official", official, 5, 2, 2, 0.7, {}), ("official", official, 10, 3, 4, 1.3, {}),
    ("official", official, 4, 1, 0, 1.0, {}),
    *(("diffusers", of_diffusers, *row, {}) for row in ((6, 3, 4, 1.0), (5, 2, 2, 0.6), (9, 4, 3, 1.2), (4, 1, 1, 1.0), (6, 1, 4, 0.8))),
    *(("comfyui", of_comfyui, *row) for row in (
        (6, 3, 4, 1.0, {}), (8, 3, 4, 1.0, {"simple": True}), (10, 4, 4, 0.5, {}), (5, 2, 3, 1.5, {"end": "stop"}), (4, 3, 0, 1.0, {}),
        (7, 1, 1, 1.0, {"end": "stop"}), (8, 3, 4, 1.0, {"frame": "flow"}), (6, 2, 2, 0.7, {"frame": "flow", "end": "stop", "simple": True}))),
]


def main():
    """Writes the file."""
    torch.set_default_dtype(torch.float64)
    tensors, head = {"x_T": X_T, "sde_noise": NOISE}, {}
    for k, (peer, make, steps, p, c, tau, more) in enumerate(CASES):
        final, sigma, found = make(steps, p, c, tau, **more)
        name = f"{peer}_{k}_{found['frame']}_{p}{c}_{steps}"
        head[name] = {
            "name": name, "sa_peer": peer, "steps": steps, "nfe": steps, "predictor_order": p, "corrector_order": c, "tau": tau,
            "scale": SCALE, "mixture_seed": 0, "x_T_seed": 0, "simple_order_2": True, "lower_order_final": True, **found}
        tensors[f"{name}.final"] = final.contiguous()
        tensors[f"{name}.sigma"] = torch.as_tensor(sigma).clone()
    texts = {name: json.dumps(value) for name, value in head.items()}
    save_file(tensors, Path(__file__).with_name("sa_solver.safetensors"), {"cases": json.dumps(list(head)), **texts})


if __name__ == "__main__":
    main()

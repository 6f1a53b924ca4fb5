"""Golden data: final states and trajectories of the papers' official code on the analytic mixture.

Reads every file of the folder named by FEWSTEP_GOLDEN (default ``tests/data/golden``) and takes all settings from each
case's metadata. A case of a system that is not built yet is skipped by name.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep.samplers import GivenNoise, frames, grids, make_plan, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.correctors.unic import unic
from fewstep.samplers.hooks import DynamicThresholding
from safetensors import safe_open

FOLDER = Path(os.environ.get("FEWSTEP_GOLDEN") or Path(__file__).parents[1] / "data" / "golden")
SD_BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
RELATIVE = {"dpm": 1e-9, "kd": 1e-9, "adaptive": 1e-8, "unipc": 1e-10, "deis": 1e-9}


def system_of(settings: dict) -> str | None:
    if "kd_function" in settings:
        return "kd"
    if settings.get("algorithm") in ("dpmsolver", "dpmsolver++") and "method" in settings:
        return "adaptive" if settings["method"] == "adaptive" else "dpm"
    if settings.get("prediction") in ("data_prediction", "noise_prediction") and "variant" in settings:
        return "unipc"
    if settings.get("method") in ("t_ab", "rho_ab", "rho_rk", "ipndm"):
        return "deis"
    return None


def cases():
    found = sorted(FOLDER.glob("*.safetensors"))
    assert found, f"no golden files in {FOLDER}"
    for path in found:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        listed = json.loads(meta.get("cases", "[]"))
        names = [c["name"] if isinstance(c, dict) else c for c in listed]
        settings = [c if isinstance(c, dict) else json.loads(meta.get(c, "{}")) for c in listed]
        systems = [None if "system" in meta else system_of(s) for s in settings]
        if not any(systems):
            yield pytest.param(path, path.stem, {}, None, id=path.stem)
            continue
        for name, setting, system in zip(names, settings, systems, strict=True):
            yield pytest.param(path, name, setting, system, id=f"{path.stem}-{name}")


class Case:
    """One case: its tensors, its settings with the documented defaults, and the testbed's model."""

    def __init__(self, path: Path, name: str, settings: dict) -> None:
        self.path, self.name, self.set = path, name, settings
        self.model = GaussianMixture.make(settings["mixture_seed"])
        with safe_open(path, "pt") as file:
            self.tensors = {
                key: file.get_tensor(key) for key in file.keys() if key.startswith(name + ".") or "." not in key  # noqa: SIM118
            }
        self.x_T = self.tensors["x_T"]
        assert torch.equal(self.x_T, start_noise(settings["x_T_seed"], tuple(self.x_T.shape)))
        self.evaluated: list[float] = []
        self.predicted: list[torch.Tensor] = []

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[f"{self.name}.{key}"]

    def __contains__(self, key: str) -> bool:
        return f"{self.name}.{key}" in self.tensors

    def denoiser(self, frame):
        guided = self.model.denoiser(frame, self.set["scale"])

        def denoise(x, sigma):
            self.evaluated.append(float(sigma[0]))
            self.predicted.append(guided(x, sigma))
            return self.predicted[-1].clone()

        return denoise

    def compare(self, result, tolerance, key="final"):
        reference = self[key]
        error = ((result - reference).abs().max() / reference.abs().max()).item()
        assert error <= tolerance, f"{self.name}: relative error {error:.2e}"

    def run(self, plan, frame, start, **more):
        states = [start]
        result = run(plan, self.denoiser(frame), start, callback=lambda p: states.append(p.x.clone()), **more)
        states.append(result)
        assert len(self.evaluated) == self.set["nfe"]
        if "eval_sigma" in self:
            torch.testing.assert_close(torch.tensor(self.evaluated, dtype=torch.float64), self["eval_sigma"], rtol=1e-9, atol=1e-12)
        return result, states


def frame_and_grid(case: Case, steps: int):
    """The frame, grid and start of the DPM-Solver and UniPC files, by schedule and skip type."""
    schedule, skip = case.set["schedule"], case.set.get("skip", "time_uniform")
    if schedule in ("edm", "flow"):
        frame, nodes = getattr(frames, schedule)(), case["sigma"]
        if len(nodes) != steps + 1:  # singlestep: the file's nodes are the outer ones
            nodes = torch.cat([case["eval_sigma"][:steps], nodes[-1:]])
        grid = grids.from_sigmas(frame, nodes)
        assert grid.end == "stop" and grid.steps == steps
        if "FEWSTEP_GOLDEN" not in os.environ:  # the nodes that the shipped files' note describes
            made = (
                grids.karras(frame, steps, end="stop", t_T=14.6, t_0=0.02) if schedule == "edm"
                else grids.shifted(frame, steps, end="stop", t_T=0.999, t_0=0.02, shift=3.0)
            )
            np.testing.assert_allclose(made.sigma, grid.sigma, rtol=1e-12)
        return frame, grid, case.x_T * (grid.sigma[0] if schedule == "edm" else 1.0)
    frame = {
        "sd": lambda: frames.discrete_vp(betas=SD_BETAS), "linear": frames.linear_vp, "cosine": frames.cosine_vp,
    }[schedule]()
    make = {"time_uniform": grids.uniform_t, "time_quadratic": grids.quadratic_t, "logSNR": grids.uniform_lambda}[skip]
    return frame, make(frame, steps, end="stop", t_0=1e-3), case.x_T


def check_nodes(case: Case, grid) -> None:
    if "sigma" in case and len(case["sigma"]) == len(grid.sigma):
        np.testing.assert_allclose(grid.sigma, case["sigma"], rtol=1e-9)
        np.testing.assert_allclose(grid.alpha, case["alpha"], rtol=1e-9)


def golden_dpm(case: Case) -> None:
    s = case.set
    method, order, steps = s["method"], s["order"], s["steps"]
    if method == "singlestep_fixed":
        steps -= steps % order  # the official code drops a rest before it makes the grid
    frame, grid, start = frame_and_grid(case, steps)
    common = {
        "order": order, "prediction": "data" if s["algorithm"] == "dpmsolver++" else "noise",
        "solver_type": s.get("solver_type", "dpmsolver"), "thresholding": s.get("thresholding", False),
        "denoise_to_zero": s.get("denoise_to_zero", False),
    }
    if method == "multistep":
        plan = make_plan("dpm_solver_multistep", frame, grid, lower_order_final=s.get("lower_order_final", True), **common)
        check_nodes(case, grid)
    else:
        allocation = "fixed" if method == "singlestep_fixed" else "fast"
        inner = "lambda" if s.get("skip") == "logSNR" and s["schedule"] not in ("edm", "flow") else "grid"
        plan = make_plan("dpm_solver_singlestep", frame, grid, allocation=allocation, inner=inner, **common)
        if "step_orders" in s:
            orders = np.bincount([stage.step for stage in plan.stages]).tolist()
            assert orders == s["step_orders"] + [1] * common["denoise_to_zero"]
    result, states = case.run(plan, frame, start)
    case.compare(result, RELATIVE["dpm"])
    if "states" in case and method == "multistep":
        torch.testing.assert_close(torch.stack(states[:-1]), case["states"], rtol=0, atol=1e-9 * case["states"].abs().max())
    if "x0_at_evals" in case and not common["thresholding"]:
        torch.testing.assert_close(torch.stack(case.predicted), case["x0_at_evals"], rtol=0, atol=1e-8)


def golden_adaptive(case: Case) -> None:
    s = case.set
    frame, grid, start = frame_and_grid(case, 1)
    plan = make_plan(
        "dpm_solver_adaptive", frame, grid, order=s["order"], solver_type=s.get("solver_type", "dpmsolver"),
        prediction="data" if s["algorithm"] == "dpmsolver++" else "noise", thresholding=s.get("thresholding", False),
    )
    case.compare(case.run(plan, frame, start)[0], RELATIVE["adaptive"])


def golden_kd(case: Case) -> None:
    s = case.set
    frame, name = frames.edm(), s["kd_function"]
    grid = grids.karras(frame, s["steps"], end="zero", t_T=14.6, t_0=0.03)
    if "sigma" in case and len(case["sigma"]) == len(grid.sigma):
        np.testing.assert_allclose(case["sigma"], grid.sigma, rtol=1e-12)
    sde = {key: s[key] for key in ("eta", "s_noise") if key in s}
    plan = {
        "dpmpp_2m": lambda: make_plan("dpm_solver_multistep", frame, grid, lower_order_final=False),
        "dpmpp_2m_sde": lambda: make_plan("dpm_solver_sde_multistep", frame, grid, solver_type=s["solver_type"], **sde),
        "dpmpp_3m_sde": lambda: make_plan("dpm_solver_sde_multistep", frame, grid, order=3, **sde),
        "dpmpp_sde": lambda: make_plan("dpm_solver_sde_singlestep", frame, grid, **sde),
        "dpm_fast": lambda: make_plan(
            "dpm_solver_singlestep", frame, grids.uniform_lambda(frame, s["steps"], end="stop", t_T=14.6, t_0=0.03),
            prediction="noise", inner="lambda"),
    }[name]()
    noise = GivenNoise(case.tensors["sde_noise"])
    result, _ = case.run(plan, frame, case.x_T * grid.sigma[0], noise=noise)
    assert noise.used == s["noises_used"]
    case.compare(result, RELATIVE["kd"])


def golden_unipc(case: Case) -> None:
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
    case.compare(result, RELATIVE["unipc"])
    if "states" in case:
        # the engine reports the corrected state of node i after evaluation i
        torch.testing.assert_close(torch.stack(states[1:]), case["states"], rtol=0, atol=1e-10 * case["states"].abs().max())
        torch.testing.assert_close(torch.stack(case.predicted), case["x0_at_evals"], rtol=0, atol=1e-9)
    if s.get("thresholding"):
        assert any(isinstance(hook, DynamicThresholding) for hook in plan.hooks)


def golden_deis(case: Case) -> None:
    s = case.set
    frame = {
        "sd": lambda: frames.discrete_vp(betas=SD_BETAS, interpolation="alpha_squared"), "linear": frames.linear_vp,
        "cosine": lambda: frames.cosine_vp(normalized=False),
    }[s["schedule"]]()
    ends = {"t_T": 0.99, "t_0": 1e-3} if s["schedule"] == "cosine" else {}
    uniform = s["method"] == "ipndm"
    phase, power = ("t", 1.0) if uniform else (s.get("ts_phase", "t"), s.get("ts_order", 2.0))
    grid = grids.deis_grid(frame, s["steps"], phase=phase, power=power, **ends)
    np.testing.assert_allclose(grid.sigma, case["sigma"], rtol=1e-9)
    np.testing.assert_allclose(grid.alpha, case["alpha"], rtol=1e-9)
    if s["method"] == "rho_rk":
        plan = make_plan("deis_rk", frame, grid, tableau=s["rk_method"])
    elif uniform:
        plan = make_plan("ipndm", frame, grid)
    else:
        options = {"ab_order": s["ab_order"], "basis": s["method"].removesuffix("_ab")}
        plan = make_plan("deis_ab", frame, grid, quadrature="official", **options)
        exact = make_plan("deis_ab", frame, grid, **options)
        check_weights(case, plan, case["coef"], 1e-9)
        if "coef_exact" in case:
            check_weights(case, exact, case["coef_exact"], 1e-10)
            case.compare(run(exact, case.model.denoiser(frame, s["scale"]), case.x_T), RELATIVE["deis"], "final_exact")
    case.compare(case.run(plan, frame, case.x_T)[0], RELATIVE["deis"])


def check_weights(case: Case, plan, expected: torch.Tensor, tolerance: float) -> None:
    """The file's weights: newest first, for t_ab in the x frame, for rho_ab those of v."""
    for i, stage in enumerate(plan.stages):
        scale = 1.0 if case.set["method"] == "t_ab" else plan.nodes[i + 1].alpha
        row = [stage.carry.m.get(i - j, 0.0) / scale for j in range(expected.shape[1])]
        np.testing.assert_allclose(row, expected[i], rtol=0, atol=tolerance * float(expected[i].abs().max()))


RUNNERS = {"dpm": golden_dpm, "adaptive": golden_adaptive, "kd": golden_kd, "unipc": golden_unipc, "deis": golden_deis}


@pytest.mark.parametrize(("path", "name", "settings", "system"), list(cases()))
def test_golden(path, name, settings, system):
    if system is None:
        pytest.skip(f"{name}: the system of {path.name} is not built yet")
    RUNNERS[system](Case(path, name, settings))

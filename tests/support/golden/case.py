"""One golden case, and what several systems' runners share."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from fewstep.samplers import frames, grids, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from safetensors import safe_open

SD_BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


class Case:
    """One case: its tensors, its settings with the documented defaults, and the testbed's model."""

    def __init__(self, path: Path, name: str, settings: dict) -> None:
        self.path, self.name, self.set = path, name, settings
        with safe_open(path, "pt") as file:
            self.tensors = {
                key: file.get_tensor(key) for key in file.keys() if key.startswith(name + ".") or "." not in key  # noqa: SIM118
            }
        self.evaluated: list[float] = []
        self.predicted: list[torch.Tensor] = []

    @cached_property
    def model(self) -> GaussianMixture:
        """The testbed's mixture."""
        return GaussianMixture.make(self.set["mixture_seed"])

    @cached_property
    def x_T(self) -> torch.Tensor:
        """The common start, checked against the testbed's noise of its seed."""
        x_T = self.tensors["x_T"]
        assert torch.equal(x_T, start_noise(self.set["x_T_seed"], tuple(x_T.shape)))
        return x_T

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


def frame_and_grid(case: Case, steps: int, **ends):
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
    return frame, make(frame, steps, end="stop", **{"t_0": 1e-3, **ends}), case.x_T


def check_nodes(case: Case, grid) -> None:
    if "sigma" in case and len(case["sigma"]) == len(grid.sigma):
        np.testing.assert_allclose(grid.sigma, case["sigma"], rtol=1e-9)
        np.testing.assert_allclose(grid.alpha, case["alpha"], rtol=1e-9)


def seen_by(denoiser, states: list[torch.Tensor]):
    """The denoiser, noting the states that it is given."""

    def denoise(x, sigma):
        states.append(x.clone())
        return denoiser(x, sigma)

    return denoise

"""Peers that take a list of sigmas: k-diffusion's functions, and ComfyUI's and RES4LYF's samplers inside ComfyUI.

ComfyUI is found by the environment variable COMFYUI_PATH, RES4LYF by RES4LYF_PATH (its folder; it also needs ComfyUI).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .methods import Method, Unfit, quiet
from .problems import Denoiser, Problem

K_DIFFUSION = ("euler", "heun", "dpm_2", "lms", "dpmpp_2m")
K_DIFFUSION_NOISY = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
# adaptive, or with their own guidance (``_cfg_pp``), or the same on another device
COMFYUI_LEFT_OUT = ("dpm_adaptive",)
COMFYUI_NOISY = ("ancestral", "sde", "ddpm", "lcm", "seeds", "sa_solver")
COMFYUI_GRIDS = ("simple", "sgm_uniform", "ddim_uniform", "linear_quadratic", "kl_optimal")
RES4LYF_GRIDS = ("beta57", "bong_tangent", "beta", "trailing")  # it takes seconds where others take hundredths
COMFYUI_DROPS_A_SIGMA = ("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2")  # comfy.samplers.KSampler


class Model:
    """The model object that samplers of both packages are given, around a denoiser."""

    def __init__(self, denoiser: Denoiser, model_sampling: Any = None) -> None:
        self.denoiser = denoiser
        model = types.SimpleNamespace(  # RES4LYF asks for more than its methods need
            model_sampling=model_sampling, device=torch.device("cpu"), diffusion_model=torch.nn.Identity())
        patcher = types.SimpleNamespace(get_model_object=lambda name: model_sampling, model=model)
        self.inner_model = types.SimpleNamespace(inner_model=model, model_patcher=patcher)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.denoiser(x, sigma)


@cache
def k_diffusion() -> Any:
    """k-diffusion's sampling module alone, or None: the package imports its training code with a dozen more packages."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        return None
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]  # all it uses
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError:
        return None


@cache
def comfyui() -> Any:
    """ComfyUI's ``comfy.samplers`` on the CPU (unless CUDA is there), RES4LYF loaded into it, or None."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        return None
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # a torchvision made for another torch still serves, if its operators are declared
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor d, Tensor s, float t) -> Tensor")
        comfyui.library = library  # type: ignore[attr-defined]
    samplers: Any
    arguments, sys.argv = sys.argv, ["main.py", *([] if torch.cuda.is_available() else ["--cpu"])]
    sys.path.insert(0, path)
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        samplers = importlib.import_module("comfy.samplers")
        samplers.stock_names = tuple(samplers.KSampler.SAMPLERS)
        res4lyf = os.environ.get("RES4LYF_PATH")
        if res4lyf:
            _load_pack(Path(res4lyf))
    finally:
        sys.argv = arguments
    return samplers


def _load_pack(folder: Path) -> None:
    """Loads a node pack into a ComfyUI without a server, whose routes lead nowhere."""
    routes = types.SimpleNamespace(get=_no_route, post=_no_route)
    server: Any = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(routes=routes))
    sys.modules.setdefault("server", server)
    importlib.import_module("nodes")
    spec = importlib.util.spec_from_file_location(folder.name, folder / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    spec.loader.exec_module(module)


def _no_route(path: str) -> Any:
    return lambda function: function


def model_sampling(problem: Problem) -> Any:
    """ComfyUI's own object for the problem's schedule (its default betas are Stable Diffusion's), in float64."""
    parts = importlib.import_module("comfy.model_sampling")
    bases = (parts.ModelSamplingDiscreteFlow, parts.CONST) if problem.flow else (parts.ModelSamplingDiscrete, parts.EPS)
    made = type("ModelSampling", bases, {})()
    if problem.flow:
        made.set_parameters(shift=1.0, multiplier=1000)
    return made.double()


def methods() -> list[Method]:
    """All samplers of the packages that are there."""
    found: list[Method] = []
    sampling, samplers = k_diffusion(), comfyui()
    if sampling is not None:
        found += [_k_diffusion(name, name in K_DIFFUSION_NOISY) for name in (*K_DIFFUSION, *K_DIFFUSION_NOISY)]
    if samplers is not None:
        for name in samplers.KSampler.SAMPLERS:
            if name in COMFYUI_LEFT_OUT or name.endswith(("_cfg_pp", "_gpu")):
                continue
            if name in samplers.stock_names:
                found.append(_comfyui("ComfyUI", name, any(word in name for word in COMFYUI_NOISY)))
            elif name.startswith(("res_", "deis_")):  # the others are its machinery; without _ode they add noise
                found.append(_comfyui("RES4LYF", name, not name.endswith("_ode")))
    return found


def _k_diffusion(name: str, stochastic: bool) -> Method:
    function = getattr(k_diffusion(), f"sample_{name}")

    def sample(problem: Problem, denoiser: Denoiser, grid: str, steps: int) -> torch.Tensor:
        return call(function, Model(denoiser), problem, torch.from_numpy(problem.sigmas(grid, steps)))

    # its formulas are those of alpha = 1
    return Method("k-diffusion", name, lambda problem: () if problem.flow else problem.grid_names(), sample, stochastic)


def _comfyui(package: str, name: str, stochastic: bool) -> Method:
    samplers = comfyui()
    drops = name in COMFYUI_DROPS_A_SIGMA

    def sample(problem: Problem, denoiser: Denoiser, grid: str, steps: int) -> torch.Tensor:
        sampling = model_sampling(problem)
        count = steps + drops
        if grid in problem.grid_names():
            sigmas = torch.from_numpy(problem.sigmas(grid, count))
        else:
            with quiet():
                try:
                    sigmas = samplers.calculate_sigmas(sampling, grid, count).double()
                except ZeroDivisionError as error:  # bong_tangent in few steps
                    raise Unfit from error
        if drops:
            sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
        function = samplers.sampler_object(name).sampler_function
        return call(function, Model(denoiser, sampling), problem, sigmas)

    def grids(problem: Problem) -> tuple[str, ...]:
        return RES4LYF_GRIDS if package == "RES4LYF" else tuple(dict.fromkeys((*problem.grid_names(), *COMFYUI_GRIDS)))

    return Method(package, name, grids, sample, stochastic)


def call(function: Any, model: Model, problem: Problem, sigmas: torch.Tensor) -> torch.Tensor:
    """A sampler function of k-diffusion's form; raises Unfit where it fails."""
    if len(sigmas) < 2:
        raise Unfit
    torch.manual_seed(0)  # samplers that make their own noise
    options: Any = {"model_options": {"transformer_options": {}}}
    try:
        with quiet():
            start = problem.noise * sigmas[0]
            out: torch.Tensor = function(model, start, sigmas, extra_args={"seed": 0, **options}, callback=None, disable=True)
    except (ValueError, IndexError, AssertionError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise Unfit from error
    return out

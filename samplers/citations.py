"""The papers behind solvers and correctors, as BibTeX; the entries stand in ``citations.bib``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

KEYS: dict[str, tuple[str, ...]] = {
    "ddim": ("song2021ddim",),
    "dpm_solver_multistep": ("lu2022dpmsolver", "lu2022dpmsolverpp"),
    "dpm_solver_singlestep": ("lu2022dpmsolver", "lu2022dpmsolverpp"),
    "dpm_solver_adaptive": ("lu2022dpmsolver",),
    "dpm_solver_sde_multistep": ("lu2022dpmsolverpp",),
    "dpm_solver_sde_singlestep": ("lu2022dpmsolverpp",),
    "sa_solver": ("xue2023sasolver",),
    "unipc": ("zhao2023unipc",),
    "unic": ("zhao2023unipc",),
    "deis_ab": ("zhang2023deis",),
    "deis_rk": ("zhang2023deis",),
    "ipndm": ("liu2022pndm", "zhang2023deis"),
    "pndm": ("liu2022pndm",),
    "gradient_estimation": ("permenter2024interpreting",),
    "dpm_solver_v3": ("zheng2023dpmsolverv3",),
    "consistency": ("song2023consistency", "luo2023lcm"),
    "tcd": ("zheng2024tcd",),
    "teleport": ("wang2024gaussian",),
    "dynamic_compensation": ("zhao2024dcsolver",),
    "dualfast": ("yu2025dualfast",),
    "fitted_plan": ("fu2025lsd",),
    "sigma_clock": ("karras2022edm",),
    "time_shift": ("li2024timeshift",),
    # what is no solver: grids, and methods of few-step and routed adapters
    "karras": ("karras2022edm",),
    "edm_rho": ("karras2022edm",),
    "beta": ("lee2024beta",),
    "shifted": ("esser2024sd3",),
    "lora": ("hu2022lora",),
    "distilled": ("luo2025tdm", "yin2024dmd2", "luo2023lcm", "zheng2024tcd", "zhang2023hipa", "miao2025pso", "liang2024spo"),
    "routed": ("ponti2023poly", "caccia2023mhr", "kim2023hydra"),
}


@lru_cache(maxsize=1)
def entries() -> dict[str, str]:
    """The BibTeX entries by key, in the file's order."""
    text = Path(__file__).with_suffix(".bib").read_text("utf-8")
    blocks = [block.strip() for block in text.split("\n\n") if block.strip()]
    return {block[block.index("{") + 1 : block.index(",")]: block for block in blocks}


def bibtex(names: Iterable[str]) -> str:
    """The entries of solvers, correctors and start transforms by name, each once; a name without a paper adds nothing."""
    keys = dict.fromkeys(key for name in names for key in KEYS.get(name, ()))
    return "\n\n".join(entries()[key] for key in keys)

"""Makes the workflow templates: ``python -m fewstep.host.templates`` writes ``example_workflows/`` anew.

Each template is composed here in API form, laid out as the frontend saves it, run, and given a thumbnail of its pictures.
The API forms are kept beside the tests, which hold both forms to each other and to a real ComfyUI.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..samplers.plan_io import write_atomically
from .thumbnails import thumbnail
from .ui_layout import to_ui

ROOT = Path(__file__).resolve().parents[1]
Prompt = dict[str, dict[str, Any]]
SOLVERS: dict[str, tuple[str, dict[str, Any], int, str, int]] = {  # template -> (node, widgets, steps, digit, seed)
    "solver_ddim": ("FewStepDDIM", {}, 12, "0", 1),
    "solver_dpm_multistep": ("FewStepDPMSolverMultistep", {}, 8, "3", 1),
    "solver_dpm_singlestep": ("FewStepDPMSolverSinglestep", {"order": 2}, 8, "2", 3),
    "solver_dpm_adaptive": ("FewStepDPMSolverAdaptive", {}, 8, "4", 1),
    "solver_dpm_sde": ("FewStepDPMSolverSDE", {}, 12, "5", 1),
    "solver_sa": ("FewStepSASolver", {}, 8, "5", 1),
    "solver_dpm_v3": ("FewStepDPMSolverV3", {}, 7, "0", 3),
    "solver_deis": ("FewStepDEIS", {}, 8, "8", 1),
    "solver_deis_runge_kutta": ("FewStepDEISRungeKutta", {"tableau": "2heun"}, 6, "9", 1),
    "solver_ipndm": ("FewStepIPNDM", {}, 8, "1", 1),
    "solver_pndm": ("FewStepPNDM", {"order": 2}, 8, "6", 4),
    "solver_gradient_estimation": ("FewStepGradientEstimation", {}, 6, "2", 1),
    "solver_consistency": ("FewStepConsistency", {"method": "tcd"}, 12, "7", 1),
}


def node(kind: str, title: str | None = None, /, **inputs: Any) -> dict[str, Any]:
    """One node in API form: the given inputs, and every other widget at its default."""
    from .executor import all_classes
    from .validate import WIDGETS, input_specs

    specs = input_specs(all_classes()[kind])
    known = {
        name: spec.options.get("default", next(iter(spec.type), None) if isinstance(spec.type, list) else None)
        for name, spec in specs.items() if isinstance(spec.type, list) or spec.type in WIDGETS
    }
    ordered = {name: inputs.get(name, known.get(name)) for name in specs if name in inputs or name in known}
    return {"class_type": kind, "inputs": ordered, **({"_meta": {"title": title}} if title else {})}


def common(form: str, digit: str, batch: int) -> Prompt:
    """Nodes 1 to 4: model, prompts, empty latent."""
    return {
        "1": node("FewStepDemoCheckpoint", form=form),
        "2": node("CLIPTextEncode", "Prompt: a digit", text=digit, clip=["1", 1]),
        "3": node("CLIPTextEncode", "Negative prompt (empty)", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=batch),
    }


def sample(sampler: str, sigmas: str, latent: str, seed: int, cfg: float = 2.0, positive: str = "2") -> dict[str, Any]:
    """SamplerCustom between the nodes of those ids."""
    return node(
        "SamplerCustom", model=["1", 0], add_noise=True, noise_seed=seed, cfg=cfg, positive=[positive, 0], negative=["3", 0],
        sampler=[sampler, 0], sigmas=[sigmas, 0], latent_image=[latent, 0],
    )


def text_to_digit(
    kind: str, widgets: Mapping[str, Any], steps: int, digit: str, seed: int, prefix: str, form: str = "eps"
) -> Prompt:
    """The basic graph around one solver node."""
    return {
        **common(form, digit, 4),
        "5": node(kind, **widgets),
        "6": node("FewStepSchedule", model=["1", 0], steps=steps),
        "7": sample("5", "6", "4", seed),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix=prefix),
    }


def corrected() -> Prompt:
    """UniC behind DPM-Solver++."""
    prompt = text_to_digit("FewStepDPMSolverMultistep", {}, 7, "2", 3, "corrector_unic")
    prompt["10"] = node("FewStepUniC", sampler=["5", 0])
    prompt["7"]["inputs"]["sampler"] = ["10", 0]
    return prompt


def image_to_image() -> Prompt:
    """A sampled digit becomes another one by the last part of a schedule."""
    prompt = text_to_digit("FewStepUniPC", {}, 8, "3", 1, "image_to_image")
    prompt |= {
        "10": node("CLIPTextEncode", "Prompt: what it becomes", text="8", clip=["1", 1]),
        "11": node("VAEEncode", pixels=["8", 0], vae=["1", 2]),
        "12": node("FewStepSchedule", "Schedule: the last 85 %", model=["1", 0], steps=6, denoise=0.85),
        "13": sample("5", "12", "11", 2, positive="10"),
        "14": node("VAEDecode", samples=["13", 0], vae=["1", 2]),
        "15": node("ImageBatch", "Before, after", image1=["8", 0], image2=["14", 0]),
    }
    prompt["9"]["inputs"]["images"] = ["15", 0]
    return prompt


def inpainting() -> Prompt:
    """The lower half of a sampled digit is painted anew."""
    prompt = text_to_digit("FewStepUniPC", {}, 8, "9", 1, "inpainting", form="flow")
    prompt |= {
        "10": node("CLIPTextEncode", "Prompt: what it becomes", text="4", clip=["1", 1]),
        "11": node("SolidMask", "Kept", value=0.0, width=64, height=64),
        "12": node("SolidMask", "Painted", value=1.0, width=64, height=32),
        "13": node("MaskComposite", destination=["11", 0], source=["12", 0], x=0, y=32, operation="add"),
        "14": node("SetLatentNoiseMask", samples=["7", 0], mask=["13", 0]),
        "15": sample("5", "6", "14", 5, positive="10"),
        "16": node("VAEDecode", samples=["15", 0], vae=["1", 2]),
        "17": node("ImageBatch", "Before, after", image1=["8", 0], image2=["16", 0]),
    }
    prompt["9"]["inputs"]["images"] = ["17", 0]
    return prompt


def comparison() -> Prompt:
    """Four solvers, 6 steps, one seed."""
    prompt = common("eps", "5", 2) | {"5": node("FewStepSchedule", model=["1", 0], steps=6)}
    kinds = ("FewStepDDIM", "FewStepDPMSolverMultistep", "FewStepDEIS", "FewStepUniPC")
    last = ""
    for i, kind in enumerate(kinds):
        a = 10 * (i + 1)
        prompt[str(a)] = node(kind)
        prompt[str(a + 1)] = sample(str(a), "5", "4", 4)
        prompt[str(a + 2)] = node("VAEDecode", samples=[str(a + 1), 0], vae=["1", 2])
        if last:
            prompt[str(a + 3)] = node("ImageBatch", image1=[last, 0], image2=[str(a + 2), 0])
        last = str(a + 3) if last else str(a + 2)
    prompt["50"] = node("SaveImage", "DDIM, DPM-Solver++, DEIS, UniPC", images=[last, 0], filename_prefix="four_solvers")
    return prompt


def one_node(form: str, digit: str, prefix: str, **widgets: Any) -> Prompt:
    """FewStep KSampler: everything in one node."""
    prompt = common(form, digit, 4)
    prompt["5"] = node(
        "FewStepKSampler", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], cfg=2.0, **widgets,
    )
    prompt["6"] = node("VAEDecode", samples=["5", 0], vae=["1", 2])
    prompt["7"] = node("SaveImage", images=["6", 0], filename_prefix=prefix)
    return prompt


def stock_ksampler() -> Prompt:
    """The stock KSampler with FewStep's entries in its lists."""
    prompt = common("v", "8", 4)
    prompt["5"] = node(
        "KSampler", model=["1", 0], seed=1, steps=8, cfg=2.0, sampler_name="fewstep_unipc", scheduler="fewstep_quadratic",
        positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
    )
    prompt["6"] = node("VAEDecode", samples=["5", 0], vae=["1", 2])
    prompt["7"] = node("SaveImage", images=["6", 0], filename_prefix="stock_ksampler")
    return prompt


def stock_guider() -> Prompt:
    """The usual graph of flow models, with FewStep's entries in the stock lists: no guidance, one prompt."""
    prompt = common("flow", "3", 4)
    del prompt["3"]
    return prompt | {
        "5": node("RandomNoise", noise_seed=1), "6": node("BasicGuider", model=["1", 0], conditioning=["2", 0]),
        "7": node("KSamplerSelect", sampler_name="fewstep_deis"),
        "8": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=8),
        "9": node("SamplerCustomAdvanced", noise=["5", 0], guider=["6", 0], sampler=["7", 0], sigmas=["8", 0],
                  latent_image=["4", 0]),
        "10": node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        "11": node("SaveImage", images=["10", 0], filename_prefix="stock_guider"),
    }


def two_solvers() -> Prompt:
    """One schedule in two parts: a stochastic solver while the picture is noise, then a deterministic one."""
    prompt = common("eps", "9", 4) | {
        "5": node("FewStepSchedule", model=["1", 0], steps=10), "6": node("SplitSigmas", sigmas=["5", 0], step=5),
        "7": node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=2.0),
    }
    latent = "4"
    for i, (kind, part) in enumerate((("FewStepDPMSolverSDE", 0), ("FewStepUniPC", 1))):
        a = 10 * (i + 1)
        noise = node("DisableNoise") if part else node("RandomNoise", noise_seed=2)
        prompt |= {str(a): noise, str(a + 1): node(kind)}
        prompt[str(a + 2)] = node(
            "SamplerCustomAdvanced", noise=[str(a), 0], guider=["7", 0], sampler=[str(a + 1), 0], sigmas=["6", part],
            latent_image=[latent, 0],
        )
        latent = str(a + 2)
    prompt["30"] = node("VAEDecode", samples=[latent, 0], vae=["1", 2])
    prompt["31"] = node("SaveImage", images=["30", 0], filename_prefix="two_solvers")
    return prompt


def against_plain(name: str, kind: str, widgets: Mapping[str, Any], digit: str, seed: int, cfg: float, added: Prompt) -> Prompt:
    """A solver in 5 steps, above, and what ``added`` makes of it, below: node 20 gives the SAMPLER, or both it and SIGMAS."""
    prompt = common("eps", digit, 4) | {"5": node(kind, **widgets), "6": node("FewStepSchedule", model=["1", 0], steps=5)}
    prompt |= added
    both = added["20"]["class_type"] == "FewStepFittedSolver"
    prompt["7"] = sample("5", "6", "4", seed, cfg)
    prompt["21"] = sample("20", "6", "4", seed, cfg)
    if both:
        prompt["21"]["inputs"]["sigmas"] = ["20", 1]
    prompt["8"] = node("VAEDecode", "Plain", samples=["7", 0], vae=["1", 2])
    prompt["22"] = node("VAEDecode", "Changed", samples=["21", 0], vae=["1", 2])
    prompt["23"] = node("ImageBatch", "Plain, changed", image1=["8", 0], image2=["22", 0])
    prompt["9"] = node("SaveImage", images=["23", 0], filename_prefix=name)
    return prompt


def calibrated() -> dict[str, Prompt]:
    """A digit in 5 steps: each method against its plain solver, with the demo model's own calibrations."""
    def loaded(method: str, cfg: float, form: str = "eps") -> dict[str, Any]:
        return node("FewStepLoadCalibration", model=["1", 0], file=f"digits-{form}-{method}-cfg{cfg:g}.safetensors")

    changes: dict[str, tuple[str, dict[str, Any], str, int, float, Prompt]] = {
        "calibrated_compensation": ("FewStepUniPC", {}, "3", 1, 4.0, {
            "19": loaded("ratios", 4.0), "20": node("FewStepDynamicCompensation", sampler=["5", 0], calibration=["19", 0])}),
        "calibrated_fitted_solver": ("FewStepDPMSolverMultistep", {}, "8", 2, 2.0, {
            "19": loaded("plan", 2.0), "20": node("FewStepFittedSolver", model=["1", 0], calibration=["19", 0])}),
        "calibrated_teleport": ("FewStepDPMSolverMultistep", {}, "5", 1, 2.0, {
            "1": node("FewStepDemoCheckpoint", form="flow"), "19": loaded("moments", 2.0, "flow"),
            "20": node("FewStepTeleport", sampler=["5", 0], moments=["19", 0], mode="mean", rest="regrid")}),
        "calibrated_dpm_solver_v3": ("FewStepDPMSolverMultistep", {}, "2", 1, 1.0, {
            "6": node("FewStepSchedule", model=["1", 0], kind="uniform_lambda", steps=5), "19": loaded("statistics", 1.0),
            "20": node("FewStepDPMSolverV3", statistics=["19", 0])}),
        "corrector_time_shift": ("FewStepDPMSolverMultistep", {}, "6", 1, 2.0, {
            "20": node("FewStepTimeShift", sampler=["5", 0])}),
        "corrector_dualfast": ("FewStepDDIM", {}, "9", 2, 2.0, {"20": node("FewStepDualFast", sampler=["5", 0])}),
    }
    return {name: against_plain(name, *change) for name, change in changes.items()}


def distilled_lora() -> Prompt:
    """Four steps at CFG 1 with a distilled LoRA, which brings its own sampler and sigmas."""
    prompt = common("eps", "4", 4)
    prompt["5"] = node("FewStepLoadDistilledLoRA", model=["1", 0], lora_name="digits_eps_tdm_4steps_cfg2.safetensors")
    prompt["6"] = sample("5", "5", "4", 1, 1.0)
    prompt["6"]["inputs"] |= {"model": ["5", 0], "sampler": ["5", 2], "sigmas": ["5", 3]}
    prompt["7"] = node("VAEDecode", samples=["6", 0], vae=["1", 2])
    prompt["8"] = node("SaveImage", images=["7", 0], filename_prefix="distilled_lora")
    return prompt


def advised() -> Prompt:
    """Solver, schedule and guidance as the advisor proposes them for 6 steps."""
    prompt = common("eps", "8", 4)
    prompt["5"] = node("FewStepAdvisor", model=["1", 0], steps=6)
    prompt["6"] = sample("5", "5", "4", 2)
    prompt["6"]["inputs"] |= {"cfg": ["5", 2], "sampler": ["5", 0], "sigmas": ["5", 1]}
    prompt["7"] = node("VAEDecode", samples=["6", 0], vae=["1", 2])
    prompt["8"] = node("SaveImage", images=["7", 0], filename_prefix="advisor")
    return prompt


def compare_solvers() -> Prompt:
    """Four solvers at three step counts from one noise, in one labelled picture with their differences to a fine run."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("FewStepDDIM", {}), ("FewStepDPMSolverMultistep", {}), ("FewStepUniPC", {}), ("FewStepDEIS", {}),
    ]
    prompt = common("eps", "5", 1)
    prompt |= {str(10 + i): node(kind, **widgets) for i, (kind, widgets) in enumerate(kinds, 1)}
    prompt["20"] = node(
        "FewStepCompare", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], vae=["1", 2], seed=1,
        cfg=2.0, steps="4, 6, 10", **{f"sampler_{i}": [str(10 + i), 0] for i in range(1, len(kinds) + 1)},
    )
    prompt["21"] = node("SaveImage", images=["20", 0], filename_prefix="compare_solvers")
    return prompt


def templates() -> dict[str, Prompt]:
    """Every template by name, in API form."""
    made = {name: text_to_digit(*settings, name) for name, settings in SOLVERS.items()}
    return {
        "first_picture": one_node("eps", "6", "first_picture", seed=2, steps=8), **made,
        "flow_in_four_steps": one_node(
            "flow", "7", "flow_in_four_steps", seed=3, steps=4, solver="unipc", schedule="uniform_t"),
        "corrector_unic": corrected(), "image_to_image": image_to_image(),
        "inpainting": inpainting(), "four_solvers": comparison(), "two_solvers": two_solvers(),
        "stock_ksampler": stock_ksampler(), "stock_guider": stock_guider(), **calibrated(),
        "distilled_lora": distilled_lora(), "advisor": advised(), "compare_solvers": compare_solvers(),
    }


def main() -> None:
    """Writes drawings, thumbnails and API forms."""
    from .executor import all_classes

    target, twins = ROOT / "example_workflows", ROOT / "tests" / "data" / "workflows"
    twins.mkdir(parents=True, exist_ok=True)
    for name, prompt in templates().items():
        write_atomically(twins / f"{name}.json", (json.dumps(prompt, indent=1) + "\n").encode())
        write_atomically(target / f"{name}.json", (json.dumps(to_ui(prompt, all_classes()), indent=1) + "\n").encode())
        write_atomically(target / f"{name}.jpg", thumbnail(prompt))
        print(name)


if __name__ == "__main__":
    main()

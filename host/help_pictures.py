"""Draws the help pages' pictures into ``web/docs/``: ``python -m fewstep.host.help_pictures [node ids]``.

A solver's picture is its plan, drawn by the plan inspector; a calibrating node's its own curves; a schedule's its noise levels;
others show what a graph with them makes. Everything is run on the demo model.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..nodes import NODE_CLASS_MAPPINGS
from ..nodes.help import PAGES
from .templates import Prompt, common, node, sample

if TYPE_CHECKING:
    from PIL.Image import Image

STEPS = 6
# pictures of templates
TEMPLATES = {
    "FewStepDemoCheckpoint": "first_picture", "FewStepKSampler": "flow_in_four_steps", "FewStepSchedule": "two_solvers",
    "FewStepLoadCalibration": "calibrated_fitted_solver", "FewStepLoadDistilledLoRA": "distilled_lora",
    "FewStepAdvisor": "advisor",
}
LINKED: dict[str, Prompt] = {  # nodes before a corrector
    "FewStepDynamicCompensation": {"5": node("FewStepUniPC")},
    "FewStepDualFast": {"5": node("FewStepDDIM")},
    "FewStepTeleport": {
        "1": node("FewStepDemoCheckpoint", form="flow"),
        "4": node("FewStepLoadCalibration", model=["1", 0], file="digits-flow-moments-cfg2.safetensors"),
        "5": node("FewStepDPMSolverMultistep"),
    },
}


def main(wanted: list[str]) -> None:
    """Draws those nodes' pictures, or all."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for node_id in wanted or NODE_CLASS_MAPPINGS:
        if node_id in TEMPLATES:
            shutil.copy(PAGES.parents[1] / "example_workflows" / f"{TEMPLATES[node_id]}.jpg", PAGES / f"{node_id}.jpg")
        else:
            drawn = maker(node_id)().quantize(48)
            drawn.save(PAGES / f"{node_id}.png", optimize=True)
        print(node_id, flush=True)


def maker(node_id: str) -> Callable[[], Image]:
    """What draws a node's picture."""
    cls = NODE_CLASS_MAPPINGS[node_id]
    if hasattr(cls, "KIND"):
        return partial(levels, cls.KIND)
    special = {
        "FewStepCompare": comparison, "FewStepLoRAOverSteps": strengths, "FewStepLoadRoutedAdapter": mixture,
        "FewStepPromptList": prompts, "FewStepShowStatistics": statistics, "FewStepOfficialStatistics": statistics,
        "FewStepCalibrateStatistics": statistics, "FewStepCalibrateMoments": moments, "FewStepCalibratePlan": fitting,
        "FewStepCalibrateRatios": ratios, "FewStepFittedSolver": fitted, "FewStepDistilledPreset": distilled,
    }
    return special.get(node_id, partial(plan, node_id))


def run(prompt: Prompt, node_id: str, slot: int = 0) -> Image:
    """The IMAGE that a node of the graph gives."""
    from PIL import Image

    from .embedded import EmbeddedHost
    from .executor import Executor

    with tempfile.TemporaryDirectory() as folder:
        (value,) = Executor(EmbeddedHost(folder, models_directory=folder)).execute(prompt, {}).values[node_id][slot]
    return Image.fromarray((value[0].clamp(0, 1) * 255).byte().numpy())


def inspected(added: Prompt, sampler: list[Any], sigmas: list[Any]) -> Image:
    """The plan of a sampler in a graph with the noise model as node 1 and a schedule as node 2."""
    prompt: Prompt = {
        "1": node("FewStepDemoCheckpoint"), "2": node("FewStepSchedule", model=["1", 0], steps=STEPS), **added,
        "9": node("FewStepPlanInspector", model=["1", 0], sampler=sampler, sigmas=sigmas),
    }
    return run(prompt, "9")


def plan(node_id: str) -> Image:
    """A solver node's plan, or a corrector's behind DPM-Solver++ 2M (see ``LINKED``)."""
    inputs = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"]
    if node_id == "FewStepDPMSolverAdaptive":  # no plan before it runs: its first steps' levels
        return levels("uniform_lambda")
    if node_id in ("FewStepPlanInspector", "FewStepDPMSolverV3"):
        return inspected({"6": node("FewStepUniPC" if node_id == "FewStepPlanInspector" else node_id)}, ["6", 0], ["2", 0])
    links: dict[str, Any] = {}
    added = dict(LINKED.get(node_id, {"5": node("FewStepDPMSolverMultistep")})) if "sampler" in inputs else {}
    if added:
        links["sampler"] = ["5", 0]
    if "moments" in inputs:
        links |= {"moments": ["4", 0], "mode": "mean", "rest": "regrid"}
    return inspected({**added, "6": node(node_id, **links)}, ["6", 0], ["2", 0])


def fitted() -> Image:
    """The fitted plan that comes with the noise model."""
    return inspected({
        "4": node("FewStepLoadCalibration", model=["1", 0], file="digits-eps-plan-cfg2.safetensors"),
        "6": node("FewStepFittedSolver", model=["1", 0], calibration=["4", 0]),
    }, ["6", 0], ["6", 1])


def distilled() -> Image:
    """The plan of a four-step method."""
    return inspected({"6": node("FewStepDistilledPreset", model=["1", 0], preset="dmd2-sdxl")}, ["6", 1], ["6", 2])


def levels(kind: str) -> Image:
    """A schedule's noise levels beside even steps, for a noise model and a flow model."""
    from PIL import Image

    from ..nodes.host import use_host
    from ..nodes.schedule import sigmas_of
    from ..samplers.optional import pyplot
    from .embedded import EmbeddedHost

    figure = pyplot().Figure(figsize=(7, 2.6), dpi=90, layout="constrained")
    axes = figure.subplots(1, 2)
    with tempfile.TemporaryDirectory() as folder, use_host(host := EmbeddedHost(folder)):
        for axis, form in zip(axes, ("eps", "flow"), strict=True):
            for name, style in (("uniform_t", {"color": "silver"}), (kind, {"color": "tab:orange"})):
                sigmas = sigmas_of(host.demo_sampling(form), name, 8, shift=3.0 if form == "flow" else 0.0)
                axis.plot(sigmas, "o-", ms=4, label=name, **style)
            axis.set_title("noise model" if form == "eps" else "flow model", fontsize=9)
            axis.set_xlabel("step", fontsize=8)
            axis.set_ylabel("sigma", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.legend(fontsize=8)
        axes[0].set_yscale("symlog", linthresh=0.03)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def comparison() -> Image:
    """Four solvers at three step counts."""
    prompt = common("eps", "5", 1) | {
        "11": node("FewStepDDIM"), "12": node("FewStepDPMSolverMultistep"), "13": node("FewStepUniPC"),
        "20": node("FewStepCompare", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], vae=["1", 2],
                   seed=4, cfg=2.0, sampler_1=["11", 0], sampler_2=["12", 0], sampler_3=["13", 0]),
        "21": node("PreviewImage", images=["20", 0]),
    }
    return run(prompt, "20")


def prompts() -> Image:
    """One batch, a prompt for each picture."""
    from PIL import Image

    from .thumbnails import pictures

    prompt = common("eps", "0", 4)
    prompt["2"] = node("FewStepPromptList", clip=["1", 1], prompts="2\n0\n2\n6")
    prompt |= {
        "5": node("FewStepUniPC"), "6": node("FewStepSchedule", model=["1", 0]), "7": sample("5", "6", "4", 1),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]), "9": node("SaveImage", images=["8", 0]),
    }
    row = pictures(prompt)
    sheet = Image.new("RGB", (len(row) * 164 - 4, 160), "gray")
    for i, picture in enumerate(row):
        sheet.paste(picture.resize((160, 160), Image.Resampling.BICUBIC), (i * 164, 0))
    return sheet


def calibration(kind: str, slot: int, **widgets: Any) -> Image:
    """The curves of a calibrating node on the noise model."""
    prompt = common("eps", "5", 4) | {
        "5": node("FewStepUniPC"), "6": node("FewStepSchedule", model=["1", 0], steps=5),
        "7": node(kind, model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], cfg=2.0, **widgets),
        "8": node("PreviewImage", images=["7", 2]),
    }
    return run(prompt, "7", slot)


def moments() -> Image:
    """Errors of jumps over their length."""
    return calibration("FewStepCalibrateMoments", 2, samples=16, range_samples=2)


def ratios() -> Image:
    """Errors with and without compensation."""
    return calibration("FewStepCalibrateRatios", 2, sampler=["5", 0], sigmas=["6", 0], samples=4)


def fitting() -> Image:
    """Errors of a fit as it goes on."""
    return calibration("FewStepCalibratePlan", 2, sigmas=["6", 0], samples=32, iterations=20)


def statistics() -> Image:
    """The statistics' curves."""
    prompt = common("eps", "5", 8) | {
        "7": node("FewStepCalibrateStatistics", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
                  cfg=2.0),
        "8": node("FewStepShowStatistics", statistics=["7", 0]),
    }
    return run(prompt, "8")


def strengths() -> Image:
    """Strength over steps: one LoRA fades, another takes over."""
    from ..nodes.progress import chart

    first = [1.0, 1.0, 0.7, 0.4, 0.1, 0.0, 0.0]
    drawn: Image = chart({"first LoRA": first, "second LoRA": [1 - s for s in first]})
    return drawn


def mixture() -> Image:
    """How a routed file becomes one change of the weights."""
    from PIL import Image

    from ..samplers.optional import pyplot

    figure = pyplot().Figure(figsize=(7, 2.0), dpi=90, layout="constrained")
    axis = figure.subplots()
    axis.axis("off")
    for i, share in enumerate((0.7, 0.0, 0.2, 0.1)):
        arrow = {"arrowstyle": "->", "lw": 0.5 + 4 * share, "color": "tab:orange"}
        axis.annotate("", (0.62, 0.5), (0.3, 0.9 - 0.26 * i), arrowprops=arrow)
        axis.text(0.29, 0.9 - 0.26 * i, f"adapter {i + 1}: {share:g}", ha="right", va="center", fontsize=9)
    axis.text(0.63, 0.5, "mixture of the named task,\nadded to the weights", va="center", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


if __name__ == "__main__":
    main(sys.argv[1:])

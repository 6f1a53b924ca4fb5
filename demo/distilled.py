"""The shipped few-step LoRAs of the demo model, ready to sample from."""

import copy
import functools
from dataclasses import dataclass

from ..samplers import Plan
from ..samplers.adapters import ModelTimes, Overrides, load_adapter, merge, open_adapter, settings_for, targets_of
from . import weights
from .errors import DemoError
from .model import DemoModel, load
from .sampling import frame_of
from .schedule import TRAIN_STEPS, k_sigmas


@dataclass(frozen=True)
class Distilled:
    """A LoRA on its base model.

    ``model`` is a copy of the base with the LoRA merged into it; sample it with ``plan`` and guidance 1.
    ``guidance`` is what was trained in; ``facts`` are the texts of the file's header, ``report`` is the loader's.
    """

    model: DemoModel
    plan: Plan
    guidance: float
    facts: dict[str, str]
    report: str


def names() -> list[str]:
    """The LoRAs that are shipped."""
    return sorted(path.stem for path in weights.LORAS.glob("*.safetensors"))


@functools.cache
def load_distilled(name: str, strength: float = 1.0) -> Distilled:
    """The LoRA ``name`` on its base, in float32 on the CPU, with the sampler and the noise levels that its file states."""
    if name not in names():
        raise DemoError(f"the demo has the LoRAs {', '.join(names())}; got {name!r}")
    file = open_adapter(weights.lora_path(name))
    facts = {key.removeprefix("fewstep."): text for key, text in file.metadata.items()}
    base = load(facts["base"].removeprefix("digits_"))
    net = copy.deepcopy(base.net)
    adapter = load_adapter(file, targets_of(net), {})
    for patch in adapter.patches:
        weight = net.get_parameter(patch.key.removeprefix("diffusion_model."))
        weight.copy_(merge(weight, [(patch, strength)]))
    model = DemoModel(net, base.form, base.prediction, base.alphas_cumprod, base.metadata)
    table = None if base.alphas_cumprod is None else k_sigmas(base.alphas_cumprod).tolist()
    times = ModelTimes(table is None, None if table is None else list(range(TRAIN_STEPS)), table)
    settings = settings_for(adapter.detection.preset, Overrides(), times, adapter.report)
    plan = settings.recipe.resolve(frame_of(model), settings.sigmas)
    assert isinstance(plan, Plan)
    return Distilled(model, plan, float(facts["guidance"]), facts, adapter.report.text)

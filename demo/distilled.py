"""The shipped few-step LoRAs of the demo model, ready to sample from."""

import copy
import functools
import json
from dataclasses import dataclass

from ..samplers import Plan, grids, make_plan
from ..samplers.distillation import LowRank, read_metadata
from . import weights
from .errors import DemoError
from .model import DemoModel, load
from .sampling import frame_of
from .schedule import TRAIN_STEPS, k_sigmas

# an SDE step of endless strength renews all of the noise
_SAMPLERS = {"ddim": ("ddim", {}), "renoise": ("dpm_solver_sde_multistep", {"order": 1, "eta": 1e9})}


@dataclass(frozen=True)
class Distilled:
    """A LoRA on its base model.

    ``model`` is a copy of the base with the LoRA added as it runs; sample it with ``plan`` and guidance 1.
    ``guidance`` is what was trained in; ``facts`` are the file's own, as text.
    """

    model: DemoModel
    plan: Plan
    guidance: float
    facts: dict[str, str]


def names() -> list[str]:
    """The LoRAs that are shipped."""
    return sorted(path.stem for path in weights.LORAS.glob("*.safetensors"))


@functools.cache
def load_distilled(name: str) -> Distilled:
    """The LoRA ``name`` on its base, in float32 on the CPU, with the sampler and the noise levels that its file states."""
    path = weights.lora_path(name)
    if not path.is_file():
        raise DemoError(f"the demo has the LoRAs {', '.join(names())}; got {name!r}")
    facts = read_metadata(path)
    base = load(facts["base"].removeprefix("digits_"))
    net = copy.deepcopy(base.net)
    LowRank.load(net, path).enabled = True
    model = DemoModel(net, base.form, base.prediction, base.alphas_cumprod, base.metadata)
    times = json.loads(facts["times"])
    if base.alphas_cumprod is None:
        levels = [(t + 1) / TRAIN_STEPS for t in times]
    else:
        levels = k_sigmas(base.alphas_cumprod)[times].tolist()
    solver, options = _SAMPLERS[facts["update"]]
    frame = frame_of(model)
    plan = make_plan(solver, frame, grids.from_sigmas(frame, [*levels, 0.0]), **options)
    assert isinstance(plan, Plan)
    return Distilled(model, plan, float(facts["guidance"]), facts)

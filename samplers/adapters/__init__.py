"""Adapters of distilled models: LoRA files of every format, what they were trained for, and how they change a network.

>>> import torch
>>> from fewstep.samplers import adapters
>>> network = torch.nn.Sequential(torch.nn.Linear(4, 3))
>>> tensors = {"0.lora_A.weight": torch.ones(1, 4), "0.lora_B.weight": torch.ones(3, 1), "0.alpha": torch.tensor(0.5)}
>>> file = adapters.AdapterFile("mine.safetensors", tensors)
>>> adapter = adapters.load_adapter(file, adapters.targets_of(network), {})
>>> weight = adapters.merge(network[0].weight, [(adapter.patches[0], 1.0)])
>>> bool(torch.allclose(weight - network[0].weight, torch.full((3, 4), 0.5)))
True
"""

from .detect import Detection, looks_distilled
from .files import AdapterFile, fingerprint, open_adapter
from .load import Adapter, Choices, load_adapter
from .lowrank import Patch, merge, rounds
from .presets import Preset, all_presets
from .report import Report
from .settings import Overrides, Settings, settings_for
from .targets import Targets, targets_of
from .trained_times import ModelTimes

__all__ = [
    "Adapter", "AdapterFile", "Choices", "Detection", "ModelTimes", "Overrides", "Patch", "Preset", "Report", "Settings",
    "Targets", "all_presets", "fingerprint", "load_adapter", "looks_distilled", "merge", "open_adapter", "rounds",
    "settings_for", "targets_of",
]

"""Reading and writing the demo's weight files: float16 safetensors that carry their own settings as metadata."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from .errors import WeightsError
from .vae import LATENT_MEAN, LATENT_STD

FOLDER = Path(__file__).parent / "weights"
LORAS = FOLDER / "loras"


def path_of(kind: str) -> Path:
    """Where the shipped weights of a form ("eps", "v", "flow") or of the "classifier" lie."""
    return FOLDER / ("classifier.safetensors" if kind == "classifier" else f"digits_{kind}.safetensors")


def lora_path(name: str) -> Path:
    """Where the shipped LoRA ``name`` lies."""
    return LORAS / f"{name}.safetensors"


def save(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write ``state`` as float16 with the data constants added to ``metadata``; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {name: value.detach().to(torch.float16).contiguous() for name, value in state.items()}
    facts = {"latent_mean": repr(LATENT_MEAN), "latent_std": repr(LATENT_STD), **metadata}
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(to_bytes(half, facts))
    os.replace(temporary, path)


def load(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights (float16, CPU) and metadata of ``path``, which must declare ``form`` ("eps", "v", "flow", "classifier")."""
    if not path.is_file():
        raise WeightsError(f"no weight file {path.name}; train it with the commands in demo/README.md")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise WeightsError(f"{path.name} is not a readable safetensors file: {error}") from error
    if metadata.get("form") != form:
        raise WeightsError(f"{path.name} declares the form {metadata.get('form')!r}, expected {form!r}")
    # Weights trained for other constants would sample recognisable but wrongly scaled pictures: better to stop.
    if (metadata.get("latent_mean"), metadata.get("latent_std")) != (repr(LATENT_MEAN), repr(LATENT_STD)):
        raise WeightsError(f"{path.name} was trained for other latent constants than the demo's")
    return state, metadata


def fill(net: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Copy float16 ``state`` into ``net`` in the dtype of ``net``; keys and shapes must match."""
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{name} does not fit the network: {error}") from error

"""Pickles (.pt, .bin) to safetensors: the only place where one is read, and only as tensors."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import AdapterError
from ..plan_io import replaced

MAX_DEPTH = 3


@dataclass(frozen=True)
class Converted:
    """What was written, and the other entries of the pickle's outer dictionary, which were not."""

    path: Path
    tensors: int
    left_out: tuple[str, ...]


def convert_pickle(source: str | Path, target: str | Path | None = None) -> Converted:
    """Reads a pickle with ``weights_only``, which runs no code, and writes its tensors as safetensors.

    The tensors may stand under ``state_dict`` or under one outer key. The file is written beside its final name and renamed.

    Args:
        source: the pickle.
        target: the new file, ``source`` with the ending .safetensors by default; it must not exist.

    Raises:
        AdapterError: not a pickle, damaged, or with anything but tensors in its state dictionary.
    """
    source = Path(source)
    target = source.with_suffix(".safetensors") if target is None else Path(target)
    if not source.is_file():
        raise AdapterError(f"there is no file {source}")
    if target.suffix != ".safetensors":
        raise AdapterError(f"the new file is {target.name}, its name must end in .safetensors")
    if target.exists():
        raise AdapterError(f"{target} exists already: give another name, or take it away first")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols; what matters is said below
            data = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AdapterError(
            f"{source.name} cannot be read as tensors alone: {reason}. If it holds Python objects, do not open it: ask its "
            "author for safetensors"
        ) from error
    state, left_out = _state(data, source.name)
    # tensors that share memory are written once each
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}
    with replaced(target) as part:
        save_file(tensors, part, {"format": "pt"})
    return Converted(target, len(tensors), left_out)


def _state(data: Any, name: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    left_out: list[str] = []
    for _ in range(MAX_DEPTH):
        if not isinstance(data, Mapping):
            raise AdapterError(f"{name} holds {type(data).__name__}, expected a dictionary of tensors")
        if any(isinstance(value, torch.Tensor) for value in data.values()):
            break
        inner = "state_dict" if "state_dict" in data else next(iter(data), None) if len(data) == 1 else None
        if inner is None:
            break
        left_out += [str(key) for key in data if key != inner]
        data = data[inner]
    bad = {str(key): type(value).__name__ for key, value in data.items() if not isinstance(value, torch.Tensor)}
    if bad:
        key, kind = next(iter(bad.items()))
        raise AdapterError(
            f"{name} holds {len(bad)} entries that are no tensors, such as {key!r} ({kind}): only dictionaries of tensors are "
            "converted"
        )
    if not data:
        raise AdapterError(f"{name} holds no tensors")
    return {str(key): value for key, value in data.items()}, tuple(left_out)

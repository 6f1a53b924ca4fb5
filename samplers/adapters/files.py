"""Adapter files: opened lazily, so that a file of any size costs no memory until its tensors are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import AdapterError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
CONVERT = "fewstep convert-lora"


@dataclass(frozen=True)
class AdapterFile:
    """What a file holds.

    Attributes:
        name: the file's name, for messages and detection.
        tensors: by key; they are pages of the file itself and are read when touched.
        metadata: the header's texts.
        config: ``adapter_config.json`` beside the file, empty if there is none.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def open_adapter(path: str | Path) -> AdapterFile:
    """Opens a safetensors file.

    Raises:
        AdapterError: there is no such file; it is empty, truncated, not safetensors; or it is a pickle, which could run
            code when read: the message names the command that converts it.
    """
    path = Path(path)
    if not path.is_file():
        raise AdapterError(f"there is no adapter file {path.name} in {path.parent}: refresh the list, or choose another one")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)  # a length of 8 bytes, which may begin with anything, and the brace of the header
    pickled = start[8:] != b"{" and start.startswith((b"PK\x03\x04", b"\x80"))
    if path.suffix.lower() in PICKLES or pickled:
        raise AdapterError(
            f"{path.name} is a pickle, a file that can run code when it is opened. Convert it once, which reads tensors only: "
            f'{CONVERT} "{path}"'
        )
    if size == 0:
        raise AdapterError(f"{path.name} is empty (0 bytes): download it again")
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        expected = 8 + int.from_bytes(start[:8], "little")
        short = f"; its header says more than {expected} bytes" if size < expected < 1 << 40 else ""
        raise AdapterError(
            f"{path.name} ({size} bytes) is not a readable safetensors file{short}: {error}. Download it again, or check that "
            "the download is not a web page"
        ) from error
    if not tensors:
        raise AdapterError(f"{path.name} holds no tensors: it is not an adapter")
    return AdapterFile(path.name, tensors, metadata, _config(path.with_name("adapter_config.json")))


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. It gives the file's alpha: mend it or take it away") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds {type(config).__name__}, expected an object with lora_alpha and r")
    return config


def fingerprint(*paths: str | Path | None) -> str:
    """A text that changes when one of the files does (name, size, time), for caches; missing files count too."""
    parts = []
    for path in paths:
        if path is not None:
            beside = Path(path).with_name("adapter_config.json")
            parts += [f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in (Path(path), beside) if p.exists()]
    return "|".join(parts)

"""Calibration files: one safetensors file per model and purpose, found by name in a list of folders.

A recipe names its file by a *reference*, ``name.safetensors@digest``: the digest pins the content, so a picture can tell
that its calibration has changed since.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..errors import CalibrationError, check_choice, suggest
from .fingerprint import Fingerprint

FORMAT = 1
PURPOSES = ("statistics", "ratios", "moments", "plan")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
REFERENCE = re.compile(r".+\.safetensors@[0-9a-f]{16}")
_folders: list[Path] = []


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """What was fitted.

    Attributes:
        purpose: one of ``PURPOSES``.
        tensors: the numbers.
        meta: JSON values: settings (steps, guidance, sizes, frame ...), what it was measured on, and its gain.
        model: the model's fingerprint, or None where it is not tied to one.
    """

    purpose: str
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict)
    model: Fingerprint | None = None

    def __post_init__(self) -> None:
        check_choice("purpose", self.purpose, PURPOSES)
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CalibrationError(f"the calibration's '{name}' holds NaN or infinity; nothing is saved")

    def __repr__(self) -> str:
        return f"Calibration({self.purpose}, {len(self.tensors)} tensors)"

    def check_model(self, model: Fingerprint, name: str = "this calibration") -> None:
        """Raises CalibrationError unless it was made for ``model``."""
        reason = None if self.model is None else self.model.difference(model)
        if reason:
            raise CalibrationError(
                f"{name} was made for another model: {reason}. Calibrate this model, choose its file, or allow another "
                "model's numbers explicitly"
            )


def folders() -> tuple[Path, ...]:
    """Where files are looked for, in order."""
    return tuple(_folders)


def add_folder(folder: str | Path) -> None:
    """Adds a folder to look in, once."""
    path = Path(folder).resolve()
    if path not in _folders:
        _folders.append(path)


def save(calibration: Calibration, path: str | Path) -> str:
    """Writes the file beside its final name and renames it; returns its reference.

    Raises CalibrationError for another suffix than .safetensors, or where it cannot be written (a full disk, no rights).
    """
    from ..plan_io import write_atomically

    path = Path(path)
    if path.suffix != ".safetensors":
        raise CalibrationError(f"a calibration is saved as .safetensors, not '{path.name}'")
    head = {
        "format": FORMAT, "purpose": calibration.purpose, "meta": dict(calibration.meta),
        "model": None if calibration.model is None else calibration.model.to_data(),
    }
    # cloned: the format refuses tensors that share memory
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in calibration.tensors.items()
    }
    content = to_bytes(tensors, {"fewstep_calibration": json.dumps(head, sort_keys=True, allow_nan=False)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise CalibrationError(f"'{path.name}' could not be written to {path.parent}: {error.strerror or error}") from error
    return reference(path.name, content)


def reference(name: str, content: bytes) -> str:
    """``name@digest``."""
    return f"{name}@{hashlib.blake2b(content, digest_size=8).hexdigest()}"


def reference_of(path: str | Path) -> str:
    """The reference of a file on disk, for recipes."""
    path = Path(path)
    return reference(path.name, _content(path))


def find(name: str) -> Path:
    """The file of that name, the first in ``folders()``, which may name a subfolder: ``sdxl/ratios.safetensors``.

    Raises CalibrationError where there is none, or the name leaves the folders.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or not name or ":" in name:
        raise CalibrationError(f"'{name}' is not a name inside the calibration folders")
    for folder in _folders:
        if (folder / parts).is_file():
            return folder / parts
    known = list_files()
    raise CalibrationError(
        f"there is no calibration file '{name}' in {', '.join(map(str, _folders)) or 'any folder (none is registered)'}"
        + suggest(name, known)
    )


def load(ref: str, purpose: str) -> Calibration:
    """The calibration of a reference ``name@digest``, or of a bare name.

    Raises CalibrationError: no such file, changed since (the digest differs), of another purpose, or not readable.
    """
    name, _, digest = ref.partition("@")
    if digest and not re.fullmatch(r"[0-9a-f]{16}", digest):
        raise CalibrationError(f"'{ref}' is not a reference: expected name.safetensors@ and 16 hexadecimal digits")
    path = find(name)
    found = read(path)
    if digest and not reference_of(path).endswith(digest):
        raise CalibrationError(
            f"'{name}' has changed since this recipe was made (the recipe says {digest}): choose the file anew in its node"
        )
    if found.purpose != purpose:
        raise CalibrationError(f"'{name}' holds {found.purpose}, but {purpose} are needed here")
    return found


def resolve(value: Calibration | str, purpose: str) -> Calibration:
    """An option's calibration: the object itself, or the file of a reference. Raises CalibrationError, see ``load``."""
    if isinstance(value, str):
        return load(value, purpose)
    if not isinstance(value, Calibration) or value.purpose != purpose:
        what = f"one of {value.purpose}" if isinstance(value, Calibration) else type(value).__name__
        raise CalibrationError(f"a calibration of {purpose} is needed, or a reference to its file, not {what}")
    return value


def read(path: str | Path) -> Calibration:
    """Reads any calibration file; raises CalibrationError naming the fault."""
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        raise CalibrationError(f"there is no file {path}") from None
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _read(path: Path, changed: int, size: int) -> Calibration:
    if path.suffix.lower() in PICKLES:
        raise CalibrationError(f"'{path.name}' is a pickle, which can run any code when it is opened; only safetensors are read")
    try:
        with safe_open(path, "pt") as file:
            head = json.loads((file.metadata() or {})["fewstep_calibration"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if head["format"] != FORMAT:
            raise CalibrationError(f"'{path.name}' has format {head['format']!r}, this FewStep reads {FORMAT}: update FewStep")
        model = None if head["model"] is None else Fingerprint.from_data(head["model"])
        return Calibration(head["purpose"], tensors, head["meta"], model)
    except CalibrationError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"'{path.name}' is not a FewStep calibration, or is damaged ({type(error).__name__}: {error}); make it again"
        ) from error


def list_files(purpose: str | None = None) -> list[str]:
    """Names of the files in the folders and their subfolders, sorted; of one purpose if given. Unreadable ones are left out."""
    names: set[str] = set()
    for folder in _folders:
        for path in folder.rglob("*.safetensors"):
            if purpose is None or _purpose(path) == purpose:
                names.add(path.relative_to(folder).as_posix())
    return sorted(names)


def _purpose(path: Path) -> str | None:
    try:
        with safe_open(path, "pt") as file:
            return str(json.loads((file.metadata() or {})["fewstep_calibration"])["purpose"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"'{path}' cannot be read: {error.strerror or error}") from error

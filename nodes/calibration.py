"""Calibration files in the graph: the socket FEWSTEP_CALIBRATION, the loader, and what ties a file to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .host import HostError, get_host

if TYPE_CHECKING:
    from ..samplers.calibration.fingerprint import Fingerprint
    from ..samplers.calibration.store import Calibration

SOCKET = "FEWSTEP_CALIBRATION"
SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "calibration"  # for the demo models
OTHER_MODEL = {
    "default": False, "advanced": True,
    "tooltip": "Use the file although it was made for another model. Near relatives of the model may still gain; look closely.",
}


class CalibrationInput(NamedTuple):
    """What the socket carries: the reference for recipes, and the content."""

    reference: str
    calibration: Calibration


def register_folders() -> Path:
    """Makes the host's calibration folders and the shipped one known to the store; returns where new files go."""
    from ..samplers.calibration import store

    own = get_host().calibration_folders()
    for folder in (*own, SHIPPED):
        store.add_folder(folder)
    return own[0]


def fingerprint_of(model: Any) -> Fingerprint:
    """The fingerprint of a MODEL: its weights without patches, and the patches."""
    from ..samplers.calibration.fingerprint import Fingerprint

    return Fingerprint.of(*get_host().weights(model))


def opened(name: str) -> CalibrationInput:
    """The file of that name with its reference; raises CalibrationError."""
    from ..samplers.calibration import store

    register_folders()
    path = store.find(name)
    digest = store.reference_of(path).rpartition("@")[2]
    return CalibrationInput(f"{name}@{digest}", store.read(path))


def listed() -> list[str]:
    """Names of the files that the host knows; empty outside of a host."""
    from ..samplers.calibration import store

    try:
        register_folders()
    except HostError:
        return []
    return store.list_files()


def summary(calibration: Calibration) -> str:
    """What a calibration is, for people: one line per fact."""
    facts = "\n".join(f"{key}: {brief(value)}" for key, value in sorted(calibration.meta.items()))
    return f"{calibration.purpose}\n{facts}"


def brief(value: Any) -> str:
    """A value in few words: numbers rounded, long lists by their ends."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {brief(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        parts = [brief(item) for item in value]
        return ", ".join(parts) if len(parts) <= 12 else f"{parts[0]} ... {parts[-1]} ({len(parts)} values)"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


class FewStepLoadCalibration:
    """A calibration file."""

    DISPLAY_NAME = "Load Calibration (FewStep)"
    CATEGORY = "FewStep/calibration"
    DESCRIPTION = (
        "Opens a calibration file from models/fewstep: statistics, ratios, moments or a fitted plan. A file belongs to the model "
        "that it was measured on; another one is refused. Connect the result to the node of its method."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["statistics", "ems", "ratios", "fitted plan", "moments"]
    RETURN_TYPES = (SOCKET, "STRING")
    RETURN_NAMES = ("calibration", "facts")
    OUTPUT_TOOLTIPS = ("For the node that applies the method.", "What the file holds and how it was made.")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to be sampled; the file must have been made for it."}),
                "file": (listed(), {"tooltip": "A file in models/fewstep, or one of the demo model's."}),
            },
            "optional": {"allow_other_model": ("BOOLEAN", dict(OTHER_MODEL))},
        }

    @classmethod
    def IS_CHANGED(cls, file: str = "", **ignored: Any) -> str:
        """The file's digest: a changed file runs the graph anew."""
        from ..samplers.errors import CalibrationError

        try:
            return opened(file).reference
        except CalibrationError as error:
            return str(error)

    def load(self, model: Any, file: str, allow_other_model: bool = False) -> tuple[CalibrationInput, str]:
        """The calibration and its facts; raises CalibrationError."""
        found = opened(file)
        if not allow_other_model:
            found.calibration.check_model(fingerprint_of(model), f"'{file}'")
        return found, summary(found.calibration)


NODES = (FewStepLoadCalibration,)

"""DPM-Solver-v3 in the graph: the solver with its statistics, their curves, and the authors' own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .calibration import SOCKET, CalibrationInput, fingerprint_of, register_folders, summary
from .frames import frame_of
from .host import HostError, get_host
from .progress import as_image, chart
from .solvers import SolverNode

FILES = ("l.npz", "sb.npz")


class FewStepDPMSolverV3(SolverNode):
    """DPM-Solver-v3."""

    SOLVER = "dpm_solver_v3"
    SHOWN = ("order", "corrector", "lower_order_final", "s_max", "per_channel", "p_pseudo", "c_pseudo", "snap", "quadrature")
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "order": {"high": 3, "tooltip": "Outputs that each step builds on, 1 to 3. 2 is the safe choice. Needs that many steps."},
        "corrector": {"tooltip": "Re-uses each evaluation to correct the step before it, at no cost: in every step (full), in "
                                 "the noisy half of the model's time (half), or none, for very large guidance."},
        "lower_order_final": {"tooltip": "Lowers the order in the last steps; keep it on with few steps."},
        "quadrature": {"tooltip": "How the statistics are integrated between their noise levels: trapezoid as published, "
                                  "exponential is finer on few levels."},
    }
    DISPLAY_NAME = "DPM-Solver-v3 (FewStep)"
    DESCRIPTION = (
        "A solver fitted to the model by statistics measured on it once per guidance scale (Zheng et al. 2023): connect a "
        "calibration of statistics. Strongest at 5 to 10 steps. Without one it is DPM-Solver++ with a corrector."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["dpm solver v3", "ems", "statistics", "calibrated"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        statistics = (SOCKET, {"tooltip": "Statistics of this model at this guidance, measured or loaded."})
        return {**super().INPUT_TYPES(), "optional": {"statistics": statistics}}

    def build(self, statistics: CalibrationInput | None = None, **widgets: Any) -> tuple[Any]:
        """The SAMPLER; raises CalibrationError for a calibration of something else."""
        reference = {} if statistics is None else {"statistics": statistics.reference}
        return self._build(self.SOLVER, {**widgets, **reference})


class FewStepShowStatistics:
    """Statistics as curves."""

    DISPLAY_NAME = "Show Statistics (FewStep)"
    CATEGORY = "FewStep/calibration"
    DESCRIPTION = (
        "Draws the statistics of DPM-Solver-v3 over the noise level, noise on the left: l, the linear part, falls from 1 to 0; s "
        "and b, scale and offset of the rest, should be smooth and small. Spikes mean too few samples."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["show ems", "statistics", "curves", "dpm solver v3"]
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("curves", "facts")
    OUTPUT_TOOLTIPS = ("l, s and b, averaged over channels and positions.", "How they were measured, and their ranges.")
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"statistics": (SOCKET, {"tooltip": "A calibration that holds statistics."})}}

    def show(self, statistics: CalibrationInput) -> dict[str, Any]:
        """(picture, text), and the text for the node itself; raises CalibrationError for another purpose."""
        from ..samplers.calibration.statistics import Statistics

        text = f"{summary(statistics.calibration)}\n{(found := Statistics.of(statistics.calibration)).ranges()}"
        return {"ui": {"text": [text]}, "result": (as_image(chart(found.curves())), text)}


class FewStepOfficialStatistics:
    """The authors' files."""

    DISPLAY_NAME = "Import Official Statistics (FewStep)"
    CATEGORY = "FewStep/calibration"
    DESCRIPTION = (
        "Reads a folder of l.npz and sb.npz, as DPM-Solver-v3's authors publish them, from models/fewstep, and writes it there "
        "as a calibration file tied to this model. It must be this very model: another checkpoint gains little."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["ems", "npz", "dpm solver v3", "load ems"]
    RETURN_TYPES = (SOCKET,)
    RETURN_NAMES = ("statistics",)
    OUTPUT_TOOLTIPS = ("For DPM-Solver-v3.",)
    FUNCTION = "read"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that the statistics were measured on."}),
            "folder": (_official_folders(), {"tooltip": "A folder inside models/fewstep with l.npz and sb.npz."}),
        }}

    @classmethod
    def IS_CHANGED(cls, folder: str = "", **ignored: Any) -> str:
        """The files' dates: changed files run the graph anew."""
        paths = [base / folder / file for base in _bases() for file in FILES]
        return str([path.stat().st_mtime_ns for path in paths if path.is_file()])

    def read(self, model: Any, folder: str) -> tuple[CalibrationInput]:
        """The calibration; raises CalibrationError for damaged files and folders outside models/fewstep."""
        from ..samplers.calibration import store
        from ..samplers.calibration.statistics import read_official

        source = store.find(f"{folder}/{FILES[0]}").parent
        frame = frame_of(model.get_model_object("model_sampling"))
        made = read_official(source, frame).calibration(fingerprint_of(model))
        name = f"{folder.replace('/', '-')}-official.safetensors"
        return (CalibrationInput(store.save(made, register_folders() / name), made),)


def _bases() -> list[Path]:
    try:
        return get_host().calibration_folders()
    except HostError:
        return []


def _official_folders() -> list[str]:
    found = {path.parent.relative_to(base).as_posix() for base in _bases() for path in base.rglob(FILES[0])}
    return sorted(found)


NODES = (FewStepDPMSolverV3, FewStepShowStatistics, FewStepOfficialStatistics)

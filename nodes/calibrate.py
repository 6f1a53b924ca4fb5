"""What the calibrating nodes share: the cost beforehand, the work inside the host's sampling, resumption, and the file."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .calibration import SOCKET, CalibrationInput, fingerprint_of, register_folders, summary
from .host import get_host
from .inside import Session, work_inside
from .progress import as_image, chart, reporter

if TYPE_CHECKING:
    from ..samplers.calibration.fingerprint import Fingerprint
    from ..samplers.calibration.job import Job, Report
    from ..samplers.calibration.store import Calibration
    from ..samplers.frames import Frame

log = logging.getLogger("fewstep")
NAME = re.compile(r"[\w][\w .+-]{0,99}", re.UNICODE)


class Parts:
    """The jobs of one calibration, which report as one and leave their partial states beside the file."""

    def __init__(self, file: Path, total: int, settings: Mapping[str, Any], update: Report) -> None:
        self.total, self._file, self._settings, self._update = total, file, settings, update
        self._jobs: list[Job] = []
        self.curves: dict[str, list[float]] = {}

    def job(self, name: str, total: int) -> Job:
        """The next part, of ``total`` evaluations."""
        from ..samplers.calibration.job import Job

        before = sum(job.total for job in self._jobs)

        def report(done: int, of: int, curves: Mapping[str, Any]) -> None:
            self.curves.update({key: list(values) for key, values in curves.items()})
            self._update(before + done, self.total, curves)

        partial = self._file.with_suffix(f".{name}.partial")
        self._jobs.append(Job(total, {**self._settings, "part": name}, partial=partial, report=report))
        return self._jobs[-1]

    def finish(self) -> None:
        """Deletes the partial states."""
        for job in self._jobs:
            job.finish()


class CalibrateNode:
    """A subclass says what it costs and does the work; ``widgets`` are its own inputs by name."""

    CALIBRATES: ClassVar[str]  # part of the default file name
    DISPLAY_NAME: ClassVar[str]

    CATEGORY = "FewStep/calibration"
    RETURN_TYPES = (SOCKET, "STRING", "IMAGE")
    RETURN_NAMES = ("calibration", "report", "curves")
    OUTPUT_TOOLTIPS = (
        "For the node that applies the method; the same as loading the file.", "What was measured, its cost and its gain.",
        "The curves as a picture.",
    )
    FUNCTION = "calibrate"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from .widgets import float_widget

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to measure; the file is tied to it, its LoRAs included."}),
                "positive": ("CONDITIONING", {"tooltip": "Prompts like those you will use; Prompt List takes several."}),
                "negative": ("CONDITIONING", {"tooltip": "The negative prompt; not evaluated at cfg 1."}),
                "latent_image": ("LATENT", {
                    "tooltip": "Gives the size of the pictures, and with its batch how many are worked on at once.",
                }),
                "cfg": ("FLOAT", float_widget(4.0, 0.0, 100.0, tooltip="Guidance to calibrate for. One file holds one value.")),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "tooltip": "Decides the noise to measure on."}),
                **cls.own_inputs(),
                "name": ("STRING", {
                    "default": "", "tooltip": "Name of the file in models/fewstep; empty: made from what is calibrated.",
                }),
                "count_only": ("BOOLEAN", {
                    "default": False, "tooltip": "Only say how many evaluations of the model it would take.",
                }),
            },
            "optional": cls.optional_inputs(),
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def own_inputs(cls) -> dict[str, Any]:
        """Widgets and sockets of the subclass."""
        raise NotImplementedError

    def cost(self, frame: Frame, batch: int, widgets: Mapping[str, Any]) -> int:
        """Evaluations of the guided model (samples times calls), known before any."""
        raise NotImplementedError

    def work(self, session: Session, cfg: float, seed: int, parts: Parts, widgets: Mapping[str, Any]) -> Calibration:
        """Measures, and keeps its state in jobs of ``parts``."""
        raise NotImplementedError

    @classmethod
    def differentiates(cls, widgets: Mapping[str, Any]) -> bool:
        """Whether the work needs gradients of the model."""
        return False

    @classmethod
    def optional_inputs(cls) -> dict[str, Any]:
        """Sockets that need not be connected."""
        return {}

    @classmethod
    def VALIDATE_INPUTS(cls, name: str | None = None) -> bool | str:
        """File names stay inside the folder."""
        good = not name or (NAME.fullmatch(name) is not None and ".." not in name)
        return True if good else f"'{name}' is no file name: use letters, digits, spaces and . _ + -"

    def calibrate(
        self, model: Any, positive: Any, negative: Any, latent_image: Mapping[str, Any], cfg: float, seed: int, name: str,
        count_only: bool, unique_id: str | None = None, **widgets: Any,
    ) -> dict[str, Any]:
        """The calibration, a report and the curves; the file is written before it returns."""
        from ..samplers.calibration import store
        from ..samplers.errors import CalibrationError
        from .frames import frame_of

        host, folder = get_host(), register_folders()
        frame = frame_of(model.get_model_object("model_sampling"))
        batch = len(latent_image["samples"])
        if not batch:
            raise CalibrationError("the LATENT holds no pictures: give an empty latent with a batch of at least 1")
        total = self.cost(frame, batch, widgets)
        guided = f"{total} evaluations" + (" with guidance (twice the work of one without)" if cfg != 1 else "")
        log.info("FewStep: %s takes %s of the model", self.DISPLAY_NAME, guided)
        if count_only:
            return {"ui": {"text": [guided]}, "result": (None, guided, as_image(chart({})))}
        model_print = fingerprint_of(model)
        settings = {
            "node": type(self).__name__, "seed": seed, "cfg": cfg, "size": list(latent_image["samples"].shape),
            "prompts": [digest(positive), digest(negative) if cfg != 1 else ""], "model": model_print.to_data(),
            "widgets": {key: plain(value) for key, value in sorted(widgets.items())},
        }
        file = folder / f"{name or self._name(settings)}.safetensors"
        parts = Parts(file, total, settings, reporter(host.progress_bar(total, unique_id)))
        found: list[Calibration] = []

        def work(session: Session) -> None:
            with host.differentiable(model) if self.differentiates(widgets) else nullcontext():
                found.append(self.work(session, cfg, seed, parts, widgets))

        work_inside(model, positive, negative, cfg, latent_image, seed, work)
        made = self._finished(found[0], model_print, cfg, latent_image)
        reference = store.save(made, file)
        parts.finish()
        text = "\n".join(filter(None, (file.name, guided, verdict(made), summary(made))))
        result = (CalibrationInput(reference, made), text, as_image(chart(parts.curves)))
        return {"ui": {"text": [text]}, "result": result}

    def _name(self, settings: Mapping[str, Any]) -> str:
        key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
        return f"{self.CALIBRATES}-cfg{settings['cfg']:g}-{key}"

    @staticmethod
    def _finished(made: Calibration, model: Fingerprint, cfg: float, latent: Mapping[str, Any]) -> Calibration:
        """With what the host knows and the library does not."""
        from dataclasses import replace

        from .. import __version__

        size = list(latent["samples"].shape[1:])
        return replace(made, model=model, meta={**made.meta, "guidance": cfg, "size": size, "fewstep": __version__})


def verdict(made: Calibration) -> str:
    """What the errors on unseen noise say, where they were measured."""
    gain = made.meta.get("gain") or {}
    before, after = (v["mean"] if isinstance(v, dict) else v for v in (gain.get("plain"), gain.get("calibrated")))
    if not before or after is None:
        return ""
    times, way = f"{after / before:.2f} times", f" in mode {gain['mode']}" if "mode" in gain else ""
    if after >= before:
        return f"NO GAIN on unseen noise ({times} the error of the plain solver{way}): use the plain solver here"
    return f"On unseen noise the mean-square error is {times} that of the plain solver{way}"


def plain(value: Any) -> Any:
    """A widget's value as JSON; sockets by their recipe, reference or content."""
    if isinstance(value, CalibrationInput):
        return value.reference
    options = get_host().sampler_options(value)
    if "recipe_json" in options:
        return options["recipe_json"]
    return value if isinstance(value, (str, int, float, bool)) or value is None else digest(value)


def digest(value: Any) -> str:
    """A digest of tensors and plain values in nested lists and dicts (CONDITIONING, SIGMAS, LATENT)."""
    state = hashlib.blake2b(digest_size=8)

    def add(item: Any) -> None:
        if hasattr(item, "detach"):
            state.update(str(tuple(item.shape)).encode())
            state.update(item.detach().cpu().float().contiguous().numpy().tobytes())
        elif isinstance(item, Mapping):
            for key in sorted(item, key=str):
                state.update(str(key).encode())
                add(item[key])
        elif isinstance(item, (list, tuple)):
            for part in item:
                add(part)
        elif isinstance(item, (str, int, float, bool)) or item is None:
            state.update(repr(item).encode())

    add(value)
    return state.hexdigest()

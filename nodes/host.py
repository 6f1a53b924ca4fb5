"""The one door to the host. Nodes call ``get_host()`` inside their functions and use nothing else of it.

Inside ComfyUI the door opens by itself (``nodes/comfy.py``); the embedded host puts itself there with ``use_host``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..samplers.adapters import Patch, Targets
    from ..samplers.adapters.forward import ForwardAdditions


class HostError(RuntimeError):
    """There is no host, or it lacks what a node needs."""


class HostFiles(Protocol):
    """The host's model files, by folder kind (``loras``)."""

    def names(self, kind: str) -> list[str]:
        """What a loader's list shows, subfolders included."""

    def path(self, kind: str, name: str) -> Path:
        """Where a file of the list is; raises the host's own error if it is gone."""

    def folders(self, kind: str) -> list[Path]:
        """The folders of that kind."""


class HostAdapters(Protocol):
    """Changing a network's weights by the host's own means. Patches are those of ``samplers.adapters``."""

    def targets(self, model: Any) -> Targets:
        """What an adapter can change in a MODEL."""

    def text_targets(self, clip: Any) -> Targets:
        """What an adapter can change in a CLIP."""

    def patch(self, model: Any, patches: Sequence[Patch], strength: float) -> Any:
        """A MODEL with the patches merged whenever the host loads it; raises HostError if it cannot take one of them."""

    def patch_text(self, clip: Any, patches: Sequence[Patch], strength: float) -> Any:
        """The same for a CLIP."""

    def add_while_running(self, model: Any, additions: ForwardAdditions) -> Any:
        """A MODEL whose every evaluation has the additions attached."""

    def rebuild_over_steps(
        self, conditionings: Sequence[Any], parts: Sequence[tuple[Sequence[Patch], Sequence[tuple[float, float]]]]
    ) -> list[Any]:
        """CONDITIONINGs under which the weights are rebuilt during sampling.

        ``parts`` are (patches, keyframes); a keyframe is (start as progress 0..1, strength).
        """

    def predict_x_0(self, model: Any) -> Any:
        """A MODEL whose network's output is taken for x_0 itself."""


class Host(Protocol):
    """What the nodes need of a host. Objects in sockets are the host's own (MODEL, CONDITIONING, LATENT, SAMPLER)."""

    def make_sampler(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        """A SAMPLER that calls ``function(model, x, sigmas, extra_args=, callback=, disable=, **options)``."""

    def sampler_options(self, sampler: Any) -> Mapping[str, Any]:
        """The ``options`` of a SAMPLER; empty where it is of another kind."""

    def wrap_sampler(self, sampler: Any, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        """As ``make_sampler``, for a function that also gets ``inner=``: the given SAMPLER as a function, called as it was.

        What the given SAMPLER does to masked latents is kept. Raises HostError for a SAMPLER that is not made of a function.
        """

    def sample(
        self, model: Any, seed: int, cfg: float, sampler: Any, sigmas: Any, positive: Any, negative: Any,
        latent: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Adds start noise to LATENT, samples with progress and preview, and returns the new LATENT."""

    def demo_checkpoint(self, form: str) -> tuple[Any, Any, Any]:
        """(MODEL, CLIP, VAE) of the demo model in the form eps, v or flow."""

    def demo_sampling(self, form: str) -> Any:
        """The ``model_sampling`` of that demo MODEL, without loading its network."""

    def check_interrupted(self) -> None:
        """Raises the host's own exception if the user pressed cancel."""

    def weights(self, model: Any) -> tuple[Mapping[str, Any], Any]:
        """(the network's own weights by name, what is patched onto them or added to them as JSON values or None) of a MODEL."""

    def differentiable(self, model: Any) -> AbstractContextManager[None]:
        """Inside, gradients can flow through the network's input: its weights are not inference tensors."""

    def calibration_folders(self) -> list[Path]:
        """Where calibration files are; new ones go into the first."""

    def running_prompt(self) -> Mapping[str, Any]:
        """The workflow that runs now, in API form, where a node cannot be given it; empty if it is not known."""

    def teller(self) -> Callable[[str, Mapping[str, Any]], None] | None:
        """How to send an event with its data to the browser that queued the running workflow; None where there is none."""

    @property
    def files(self) -> HostFiles: ...

    @property
    def adapters(self) -> HostAdapters: ...

    def progress_bar(self, total: int, node_id: str | None) -> Callable[[int, str, Any], None]:
        """``update(done, text, picture)`` for a long node: done of ``total``, a line of text, a PIL image or None."""


_host: Host | None = None


def set_host(host: Host | None) -> Host | None:
    """Installs ``host`` for all nodes and returns the one before; None goes back to looking for ComfyUI."""
    global _host
    previous, _host = _host, host
    return previous


@contextmanager
def use_host(host: Host) -> Iterator[Host]:
    """``set_host`` for the length of a ``with`` block."""
    previous = set_host(host)
    try:
        yield host
    finally:
        set_host(previous)


def get_host() -> Host:
    """The host that was installed, or ComfyUI if this is its process.

    Raises HostError outside of both.
    """
    if _host is not None:
        return _host
    if "comfy" not in sys.modules and importlib.util.find_spec("comfy") is None:
        raise HostError(
            "FewStep's nodes need a host: run them inside ComfyUI, or run the workflow with 'fewstep run WORKFLOW.json'"
        )
    from .comfy import ComfyHost

    set_host(host := ComfyHost())
    return host

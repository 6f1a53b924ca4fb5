"""The one door to the host. Nodes call ``get_host()`` inside their functions and use nothing else of it.

Inside ComfyUI the door opens by itself (``nodes/comfy.py``); the embedded host puts itself there with ``use_host``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol


class HostError(RuntimeError):
    """There is no host, or it lacks what a node needs."""


class Host(Protocol):
    """What the nodes need of a host. Objects in sockets are the host's own (MODEL, CONDITIONING, LATENT, SAMPLER)."""

    def make_sampler(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        """A SAMPLER that calls ``function(model, x, sigmas, extra_args=, callback=, disable=, **options)``."""

    def sampler_options(self, sampler: Any) -> Mapping[str, Any]:
        """The ``options`` of a SAMPLER; empty where it is of another kind."""

    def sample(
        self, model: Any, seed: int, cfg: float, sampler: Any, sigmas: Any, positive: Any, negative: Any,
        latent: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Adds start noise to LATENT, samples with progress and preview, and returns the new LATENT."""

    def demo_checkpoint(self, form: str) -> tuple[Any, Any, Any]:
        """(MODEL, CLIP, VAE) of the demo model in the form eps, v or flow."""

    def check_interrupted(self) -> None:
        """Raises the host's own exception if the user pressed cancel."""

    def weights(self, model: Any) -> tuple[Mapping[str, Any], Any]:
        """(the network's own weights by name, what is patched onto them as JSON values or None) of a MODEL."""

    def differentiable(self, model: Any) -> AbstractContextManager[None]:
        """Inside, gradients can flow through the network's input: its weights are not inference tensors."""

    def calibration_folders(self) -> list[Path]:
        """Where calibration files are; new ones go into the first."""

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

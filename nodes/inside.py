"""Work on a MODEL's guided denoiser from inside the host's own sampling.

The host loads the model, prepares the conditioning and guidance, and calls a sampler; the sampler here runs any work on the
denoiser that it is given, at any noise level and state, and returns the latent as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .frames import frame_of
from .host import get_host

if TYPE_CHECKING:
    from ..samplers.engine import Denoiser
    from ..samplers.frames import Frame


@dataclass(frozen=True)
class Session:
    """What work on a loaded model is given.

    Attributes:
        denoiser: the guided ``D(x, sigma [B]) -> x_0`` for states of the latent's size, any batch and dtype. Row i of a batch
            is conditioned by entry i of batched CONDITIONING. The host's interruption is raised between calls.
        frame: the states' noise frame.
        like: zeros [B, ...] with the states' size, device and dtype; B is what the host has reserved memory for.
        process_in: from the scale of a LATENT to that of the states.
    """

    denoiser: Denoiser
    frame: Frame
    like: Any
    process_in: Callable[[Any], Any]


def work_inside(
    model: Any, positive: Any, negative: Any, cfg: float, latent: Mapping[str, Any], seed: int, work: Callable[[Session], None]
) -> None:
    """Calls ``work`` once while the host has the model loaded.

    Args:
        latent: gives the size and the most samples per call of the model: that is what the host reserves memory for.
        work: gets a ``Session``.
    """
    def sampler(
        inner: Any, x: Any, sigmas: Any, extra_args: Mapping[str, Any] | None = None, callback: Any = None,
        disable: bool | None = None,
    ) -> Any:
        import torch

        args = {**(extra_args or {}), "denoise_mask": None}
        host = get_host()

        def denoiser(y: Any, sigma: Any) -> Any:
            host.check_interrupted()
            return inner(y.float(), sigma.float(), **args).to(y.dtype)

        loaded = inner.inner_model.inner_model
        work(Session(denoiser, frame_of(loaded.model_sampling), torch.zeros_like(x), loaded.process_latent_in))
        return x

    import torch

    high = float(model.get_model_object("model_sampling").sigma_max)
    sigmas = torch.tensor([high, 0.0])
    empty = {"samples": torch.zeros_like(latent["samples"])}
    get_host().sample(model, seed, cfg, get_host().make_sampler(sampler, {}), sigmas, positive, negative, empty)

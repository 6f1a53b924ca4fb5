"""CLIP and VAE of the demo model. They have the methods that the stock nodes call, so they work in every host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LORAS = Path(__file__).resolve().parents[1] / "demo" / "weights" / "loras"  # few-step LoRAs of the demo model, shipped


def load_demo(form: str) -> Any:
    """The demo model ``form`` (eps, v or flow) with ``net``, ``prediction`` and ``alphas_cumprod``; see ``fewstep.demo``.

    A copy that shares no tensor with other callers: hosts move networks between devices and change their dtype.
    """
    import copy
    import dataclasses

    from ..demo.model import load

    shared = load(form)
    return dataclasses.replace(shared, net=copy.deepcopy(shared.net))


class DemoClip:
    """The socket CLIP: a text becomes the demo's class weights [1, T, 11]."""

    def tokenize(self, text: str, **ignored: Any) -> dict[str, str]:
        """There are no tokens: the text itself goes on."""
        return {"text": text}

    def encode_from_tokens_scheduled(self, tokens: dict[str, str], **ignored: Any) -> list[list[Any]]:
        """CONDITIONING with one entry."""
        from ..demo.text import encode

        return [[encode(tokens["text"]), {"pooled_output": None}]]

    def encode_from_tokens(self, tokens: dict[str, str], return_pooled: bool = False, **ignored: Any) -> Any:
        """The older call: the tensor, or (tensor, pooled)."""
        tensor = self.encode_from_tokens_scheduled(tokens)[0][0]
        return (tensor, None) if return_pooled else tensor


class DemoVAE:
    """The socket VAE: latents [B, 4, h, w] and pictures [B, 8h, 8w, 3] in 0..1."""

    def decode(self, samples: Any) -> Any:
        """Latents to pictures."""
        from ..demo.vae import decode

        return decode(samples.float().cpu())

    def encode(self, pixels: Any) -> Any:
        """Pictures to latents."""
        from ..demo.vae import encode

        return encode(pixels.float().cpu())

    def decode_tiled(self, samples: Any, **ignored: Any) -> Any:
        """The map is local and small: no tiles are needed."""
        return self.decode(samples)

    def encode_tiled(self, pixels: Any, **ignored: Any) -> Any:
        """See ``decode_tiled``."""
        return self.encode(pixels)

    def spacial_compression_encode(self) -> int:
        """Picture pixels per latent pixel, under the host's name for it."""
        return 8

    def spacial_compression_decode(self) -> int:
        """Picture pixels per latent pixel, under the host's name for it."""
        return 8

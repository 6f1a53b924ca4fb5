"""Which base model a network or an adapter file belongs to, told from module names and widths alone.

Both sides are given as ``{flat module name: (inputs, outputs)}``; an adapter's names are those of any format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .names import flat, module_of

Widths = Mapping[str, tuple[int | None, int | None]]


@dataclass(frozen=True)
class Family:
    """A base model.

    Attributes:
        id: the name that presets use.
        label: the name for people.
        trunk: what must agree for weights to fit; families of one trunk differ in training or in a few modules.
    """

    id: str
    label: str
    trunk: str


def _family(id_: str, label: str, trunk: str = "") -> Family:
    return Family(id_, label, trunk or id_)


FAMILIES: dict[str, Family] = {f.id: f for f in (
    _family("sd15", "Stable Diffusion 1.5"), _family("sd2", "Stable Diffusion 2"), _family("sdxl", "SDXL"),
    _family("sdxl-refiner", "the SDXL refiner"), _family("unet", "a U-Net of the Stable Diffusion kind"),
    _family("sd3", "Stable Diffusion 3 medium", "sd3-1536"), _family("sd35-medium", "Stable Diffusion 3.5 medium", "sd3-1536"),
    _family("sd35-large", "Stable Diffusion 3.5 large"), _family("pixart", "PixArt"), _family("flux", "FLUX.1"),
    _family("flux-schnell", "FLUX.1 schnell (distilled)", "flux"),
    _family("flux2", "FLUX.2"), _family("qwen-image", "Qwen-Image"), _family("hunyuan-video", "HunyuanVideo"),
    _family("wan-14b-t2v", "Wan 14B text to video", "wan-14b"), _family("wan-14b-i2v", "Wan 14B image to video", "wan-14b"),
    _family("wan-1.3b", "Wan 1.3B"), _family("wan-5b", "Wan 2.2 5B"), _family("cogvideox", "CogVideoX"),
    _family("ltx", "LTX-Video"), _family("ltx2", "LTX-2"), _family("lumina2", "Lumina 2"), _family("z-image", "Z-Image"),
    _family("digits", "FewStep's demo digits"),
)}


class _Names:
    """Questions to the module names."""

    def __init__(self, widths: Widths) -> None:
        self.widths = widths

    def has(self, pattern: str) -> bool:
        return any(re.search(pattern, name) for name in self.widths)

    def inputs(self, pattern: str) -> int | None:
        """Most frequent input width of the modules that match."""
        found = [w[0] for name, w in self.widths.items() if re.search(pattern, name) and w[0]]
        return max(set(found), key=found.count) if found else None

    def outputs(self, pattern: str) -> int | None:
        found = [w[1] for name, w in self.widths.items() if re.search(pattern, name) and w[1]]
        return max(set(found), key=found.count) if found else None

    def depth(self, pattern: str) -> int:
        """One more than the largest block number."""
        numbers = [int(m.group(1)) for name in self.widths if (m := re.search(pattern, name))]
        return max(numbers, default=-1) + 1


def _unet(n: _Names) -> str | None:
    if not n.has(r"^(?:down|up|mid|input|output|middle)_blocks?_") or n.has(r"joint_blocks"):
        return None
    context = n.inputs(r"attn2_to_[kv]$")
    by_width = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
    if context in by_width:
        return by_width[context]
    return "sdxl" if n.depth(r"_transformer_blocks_(\d+)_") > 1 else "unet"


def _sd3(n: _Names) -> str | None:
    joint = n.has(r"^joint_blocks_\d")
    if not joint and (not n.has(r"^transformer_blocks_\d+_(?:attn_add_[qkv]_proj|ff_context)") or n.has(r"_img_mlp|_img_mod")):
        return None
    width = n.inputs(r"attn_(?:to_q|add_q_proj|qkv)$|attn_to_k$|attn_proj$")
    if n.has(r"^single_") or width not in (None, 1536, 2432):
        return None
    if width == 2432 or n.depth(r"^(?:joint|transformer)_blocks_(\d+)_") > 24:
        return "sd35-large"
    return "sd35-medium" if n.has(r"_attn2_") else "sd3"


def _flux(n: _Names) -> str | None:
    host = n.has(r"^(?:double|single)_blocks_\d+_(?:img|txt|linear|modulation|processor)")
    if not host and not n.has(r"^single_transformer_blocks_\d"):
        return None
    width = n.inputs(r"img_attn_qkv$|linear1(?:_qkv)?$|attn_to_q$|attn_to_k$|attn_to_qkv_mlp_proj$")
    if width not in (None, 3072):
        return "flux2"
    single, double = n.depth(r"^single_(?:transformer_)?blocks_(\d+)_"), n.depth(r"^(?:double|transformer)_blocks_(\d+)_")
    if single > 38 or double > 19:
        return "hunyuan-video"
    whole = n.has(r"^vector_in_") and n.has(r"^final_layer_linear$")  # a model, not an adapter
    return "flux-schnell" if whole and not n.has(r"^guidance_in_") else "flux"


def _qwen(n: _Names) -> str | None:
    if n.has(r"^transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)"):
        return "qwen-image"
    wide = n.inputs(r"^transformer_blocks_\d+_attn_(?:add_q_proj|to_q)$") == 3072
    return "qwen-image" if wide and not n.has("^single_") and n.depth(r"^transformer_blocks_(\d+)_") == 60 else None


def _wan(n: _Names) -> str | None:
    if not n.has(r"^blocks_\d+_(?:self_attn|cross_attn)_(?:q|k|v|o|k_img|v_img)$"):
        return None
    width, depth = n.inputs(r"self_attn_[qkvo]$|cross_attn_q$"), n.depth(r"^blocks_(\d+)_")
    if width == 1536 or (width is None and depth <= 30):
        return "wan-1.3b"
    if width == 3072:
        return "wan-5b"
    return "wan-14b-i2v" if n.has(r"cross_attn_k_img$") else "wan-14b-t2v"


def _dit(n: _Names) -> str | None:
    """Transformers with attn1: CogVideoX, PixArt, LTX; and PixArt under the host's names."""
    if n.has(r"^blocks_\d+_cross_attn_(?:q_linear|kv_linear)$"):
        return "pixart"
    width = n.inputs(r"^transformer_blocks_\d+_attn1_to_[qkv]$")
    if n.has(r"^transformer_blocks_\d+_(?:audio_attn|video_to_audio|audio_to_video)"):
        return "ltx2"
    return {1152: "pixart", 1920: "cogvideox", 3072: "cogvideox", 2048: "ltx", 4096: "ltx"}.get(width or 0)


def _lumina(n: _Names) -> str | None:
    if not n.has(r"^layers_\d+_attention_"):
        return None
    return "lumina2" if n.inputs(r"attention_(?:to_[qkv]|qkv|to_out_0|out)$") == 2304 else "z-image"


def _digits(n: _Names) -> str | None:
    return "digits" if n.has(r"^(?:down1|down2|up1|up2|middle1|middle2)_(?:conv1|conv2|film)$|^attention_qkv$") else None


_TESTS: tuple[Callable[[_Names], str | None], ...] = (_digits, _qwen, _sd3, _flux, _wan, _lumina, _dit, _unet)


def family_of(widths: Widths) -> Family | None:
    """The base model; None where the names tell none.

    >>> family_of({"down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (768, 320)}).label
    'Stable Diffusion 1.5'
    """
    names = _Names(widths)
    for test in _TESTS:
        found = test(names)
        if found is not None:
            return FAMILIES[found]
    return None


def model_widths(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int | None, int | None]]:
    """``family_of``'s argument for a network, from its weights' keys and shapes."""
    return {
        flat(module_of(key[: -len(".weight")])): (shape[1] if len(shape) > 1 else None, shape[0])
        for key, shape in shapes.items() if key.endswith(".weight") and shape
    }


def compatible(file: Family, model: Family) -> bool:
    """Whether the weights of one can fit the other; a U-Net of unknown kind fits every U-Net."""
    unets = {"sd15", "sd2", "sdxl", "sdxl-refiner", "unet"}
    return file.trunk == model.trunk or ("unet" in (file.id, model.id) and {file.id, model.id} <= unets)


def labels(ids: Iterable[str]) -> str:
    """Families for people, from their ids."""
    return ", ".join(FAMILIES[i].label if i in FAMILIES else i for i in ids)

"""Names inside adapter files: what a key holds, which module it belongs to, and under which other names a host may know it.

A key is ``<base>.<role>``: the base names a module in one of the file formats, the role says what the tensor is.

=====  ==============================  ===============================================================================
name   format                          example
=====  ==============================  ===============================================================================
K      kohya, diffusers' names         lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
K2     kohya, the host's names         lora_unet_input_blocks_4_1_...  lora_unet_double_blocks_0_img_attn_qkv...
D0     diffusers, attention processors unet.down_blocks...attn1.processor.to_q_lora.down.weight
D1     diffusers U-Net                 unet.down_blocks...attn1.to_q.lora.down.weight, or .lora_A.weight
D2     diffusers transformer           transformer.transformer_blocks.0.attn.to_q.lora_A.weight, or without the prefix
P      PEFT                            base_model.model.<module>.lora_A.weight, .lora_A.default.weight
G      the host's own names            diffusion_model.blocks.0.self_attn.q.lora_A.weight, .diff, .diff_b
=====  ==============================  ===============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# role -> how keys of that role end; the roles of the last group are the host's own words and are passed on as they are
_ENDINGS: dict[str, str] = {
    "lora_down.weight": r"(?:\.lora_down|_lora\.down|\.lora\.down|\.lora_linear_layer\.down)\.weight|\.lora_A(?:\.weight)?",
    "lora_up.weight": r"(?:\.lora_up|_lora\.up|\.lora\.up|\.lora_linear_layer\.up)\.weight|\.lora_B(?:\.weight)?",
    "up_bias": r"\.lora_B\.bias",
    "dora_scale": r"\.dora_scale|\.lora_magnitude_vector(?:\.weight)?",
    "hydra": r"\.hydra_(?:\w+_)?(?:par|seq)\.(?:down|up)_proj\.(?:weight|bias)",
    "routed": r"\.lora_a|\.lora_b|(?:^|\.)module_logits",
}
_OWN = (
    "alpha", "lora_mid.weight", "diff", "diff_b", "set_weight", "reshape_weight", "w_norm", "b_norm", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "lokr_t2", "oft_blocks", "rescale", "a1.weight", "a2.weight", "b1.weight", "b2.weight",
)
_OWN_ENDING = re.compile(rf"\.({'|'.join(map(re.escape, _OWN))})$")
_ROLES = [(role, re.compile(f"(?:{ending})$")) for role, ending in _ENDINGS.items()]
_ADAPTER_NAME = re.compile(r"(\.lora_(?:A|B|magnitude_vector))\.(?!weight$|bias$)([^.]+)(\.weight|\.bias)?$")
_HYDRA = re.compile(r"\.hydra_(?:(\w+)_)?(par|seq)\.(down|up)_proj\.(weight|bias)$")
_HYDRA_SIBLINGS = {"mlp": "fc2"}  # the official code names a branch of fc2 after its parent

_TEXT = re.compile(r"^(?:lora_te\d*_|lora_prior_te_|text_encoder_\d\.|text_encoders?[._]|te\d*\.)")
_PREFIX = re.compile(r"^(?:(?:unet|transformer)\.(?=.)|base_model\.model\.|(?:model\.)?diffusion_model\.)")
_FLAT_PREFIX = re.compile(r"^(?:lora_unet_+|lora_transformer_|lora_prior_unet_|lycoris_)")


class Part(NamedTuple):
    """One key taken apart: the module it belongs to, what it is, and PEFT's adapter name ('' if there is none)."""

    base: str
    role: str
    adapter: str = ""


def split_key(key: str) -> Part | None:
    """The parts of an adapter file's key; None for keys that belong to no adapter format.

    >>> split_key("base_model.model.blocks.0.q.lora_A.default.weight")
    Part(base='base_model.model.blocks.0.q', role='lora_down.weight', adapter='default')
    >>> split_key("unet.mid_block.attn1.processor.to_q_lora.up.weight").base
    'unet.mid_block.attn1.processor.to_q'
    >>> split_key("model.diffusion_model.input_blocks.0.0.weight") is None
    True
    """
    own = _OWN_ENDING.search(key)
    if own:
        return Part(key[: own.start()], own.group(1))
    named = _ADAPTER_NAME.search(key)
    adapter = named.group(2) if named else ""
    plain = key if named is None else key[: named.start()] + named.group(1) + (named.group(3) or "")
    for role, ending in _ROLES:
        found = ending.search(plain)
        if found is None:
            continue
        if role == "hydra":
            return _hydra(plain)
        if role == "routed":
            scope, _, leaf = plain.rpartition(".")
            return Part(re.sub(r"(?:^|\.)(?:selector|lora)$", "", scope), leaf)
        return Part(plain[: found.start()], role, adapter)
    return None


def _hydra(key: str) -> Part | None:
    found = _HYDRA.search(key)
    if found is None:
        return None
    sibling, branch, proj, kind = found.groups()
    base = key[: found.start()] + (f".{_HYDRA_SIBLINGS.get(sibling, sibling)}" if sibling else "")
    return Part(base, f"hydra_{branch}.{proj}_proj.{kind}")


def is_text(base: str) -> bool:
    """Whether a base names a module of a text encoder."""
    return bool(_TEXT.match(base))


def module_of(base: str) -> str:
    """The module's own name, without what the format puts in front; kohya's names stay flat.

    >>> module_of("transformer.base_model.model.blocks.0.q"), module_of("lora_unet_blocks_0_q")
    ('blocks.0.q', 'blocks_0_q')
    """
    name = _FLAT_PREFIX.sub("", base, count=1)
    if name != base:
        return name
    for _ in range(3):  # such as transformer. + base_model.model. + diffusion_model.
        shorter = _PREFIX.sub("", name, count=1)
        if shorter == name:
            break
        name = shorter
    return name


def flat(module: str) -> str:
    """The module's name with underscores, processors left out: the same for all formats of one network."""
    return module.replace(".processor.", ".").replace(".", "_")


def text_names(base: str) -> Iterator[str]:
    """The names under which hosts may know a text encoder's module, each encoder its own."""
    text = _TEXT.match(base)
    if text is None:
        return
    module = base[text.end():].replace("base_model.model.", "")
    second = "2" in text.group(0)
    yield ("text_encoder_2." if second else "text_encoder.") + module
    for name in ("lora_te2_",) if second else ("lora_te1_", "lora_te_"):
        yield name + flat(module)


_FORMATS: tuple[tuple[str, str], ...] = (
    ("P (PEFT)", r"^(?:unet\.|transformer\.)?base_model\.model\."),
    ("D0 (diffusers attention processors)", r"\.processor\."),
    ("K2 (kohya, the host's names)", r"^lora_unet_+(?:input_blocks|output_blocks|middle_block|double_blocks|single_blocks|"
                                     r"joint_blocks|blocks|layers)_"),
    ("K (kohya)", r"^(?:lora_unet_|lora_transformer_|lora_prior_unet_|lycoris_)"),
    ("G (the host's names)", r"^(?:model\.)?diffusion_model\."),
    ("D1 (diffusers U-Net)", r"^(?:unet\.)?(?:down_blocks|up_blocks|mid_block)\."),
    ("D2 (diffusers transformer)", r"^(?:transformer\.|transformer_blocks\.|single_transformer_blocks\.)"),
    ("text encoder", _TEXT.pattern),
)


def formats_of(bases: Iterable[str]) -> list[str]:
    """The formats in which the bases are written, most frequent first, as '<format>: <how many>'."""
    counts: dict[str, int] = {}
    for base in bases:
        name = next((name for name, pattern in _FORMATS if re.search(pattern, base)), "bare module names")
        counts[name] = counts.get(name, 0) + 1
    return [f"{name}: {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1])]

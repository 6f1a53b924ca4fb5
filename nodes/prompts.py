"""Several prompts as one CONDITIONING, for calibrations that should hold for more than one."""

from __future__ import annotations

from typing import Any, ClassVar


class FewStepPromptList:
    """One prompt per line."""

    DISPLAY_NAME = "Prompt List (FewStep)"
    CATEGORY = "FewStep/calibration"
    DESCRIPTION = (
        "Encodes each line as a prompt of its own: picture i of a batch gets line i, and after the last line the first again. "
        "Calibrate with several prompts that resemble what you will ask for."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["batch prompts", "prompts", "text encode"]
    RETURN_TYPES = ("CONDITIONING", "INT")
    RETURN_NAMES = ("conditioning", "count")
    OUTPUT_TOOLTIPS = ("One entry, whose batch holds the prompts.", "How many prompts there are.")
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "clip": ("CLIP", {"tooltip": "The text encoder of the model."}),
            "prompts": ("STRING", {
                "default": "", "multiline": True, "tooltip": "One prompt per line; empty lines are left out.",
            }),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, prompts: str | None = None) -> bool | str:
        """At least one line."""
        return True if prompts is None or lines(prompts) else "there is no prompt: write at least one line"

    def encode(self, clip: Any, prompts: str) -> tuple[Any, int]:
        """CONDITIONING whose tensors have one row per prompt; shorter ones are padded with zeros."""
        import torch

        entries = [clip.encode_from_tokens_scheduled(clip.tokenize(line))[0] for line in lines(prompts)]
        length = max(tensor.shape[1] for tensor, _ in entries)
        padded = [torch.nn.functional.pad(tensor, (0, 0, 0, length - tensor.shape[1])) for tensor, _ in entries]
        options: dict[str, Any] = dict(entries[0][1])
        for key, value in options.items():
            values = [more.get(key) for _, more in entries]
            if isinstance(value, torch.Tensor) and all(isinstance(v, torch.Tensor) and v.shape == value.shape for v in values):
                options[key] = torch.cat(values)
        return [[torch.cat(padded), options]], len(entries)


def lines(text: str) -> list[str]:
    """The lines that say something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


NODES = (FewStepPromptList,)

"""``fewstep convert-lora``: pickles to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert_lora(
    source: Annotated[Path, typer.Argument(help="The pickle: .pt, .bin or .ckpt.")],
    target: Annotated[Path | None, typer.Argument(help="The new file; the same name with .safetensors if left out.")] = None,
) -> None:
    """Convert a LoRA in a pickle file (.pt, .bin) to safetensors, without running code from it.

    Only tensors are read (torch.load with weights_only); a file with other objects is refused. An existing file is never
    overwritten.

    Exit codes: 0 done, 1 an error, 2 bad input.
    """
    from .cli import exit_codes

    with exit_codes():
        from ..samplers.adapters.convert import convert_pickle
        from .errors import HostInputError

        try:
            done = convert_pickle(source, target)
        except OSError as error:
            raise HostInputError(f"cannot write {target or source.with_suffix('.safetensors')}: {error.strerror}") from error
        print(f"wrote {done.path}: {done.tensors} tensors")
        if done.left_out:
            print(f"left out, as they are not part of the LoRA: {', '.join(done.left_out)}")


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("convert-lora")(convert_lora)

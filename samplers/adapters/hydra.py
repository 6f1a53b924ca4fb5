"""Hydra (Kim et al. 2023, "Hydra: Multi-head Low-rank Adaptation"): a parallel and a sequential branch around a layer.

With ``y = W x + b`` the layer gives ``y + s [U_p (D_p x + d_p) + u_p] + s [U_s (D_s y + d_s) + u_s]``, which is the layer with

    W' = W + s (U_p D_p + U_s D_s W),   b' = b + s (U_p d_p + u_p + U_s D_s b + U_s d_s + u_s),

a LoRA of rank r_p + r_s with ``up = [U_p, U_s]`` and ``down = [D_p; D_s W]``. W and b are those of the base model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import AdapterError


def merged_branches(
    tensors: Mapping[str, torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None, name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(down, up, change of the bias or None) of a Hydra module at s = 1, in float32.

    Args:
        tensors: ``hydra_par.down_proj.weight`` [r, in], ``hydra_par.up_proj.weight`` [out, r], ``.bias``; the same with
            ``hydra_seq`` (down [r, out]). Either branch may be missing.
        weight: the base weight [out, in, ...].
        bias: the base bias [out], or None.

    Raises:
        AdapterError: half a branch, sizes that do not fit, or a bias term for a layer without bias.
    """
    flat = weight.float().flatten(1)
    out, inside = flat.shape
    downs, ups = [], []
    change = torch.zeros(out)
    for branch, width in (("par", inside), ("seq", out)):
        parts = {role: tensors.get(f"hydra_{branch}.{role}") for role in (
            "down_proj.weight", "up_proj.weight", "down_proj.bias", "up_proj.bias")}
        if all(part is None for part in parts.values()):
            continue
        down, up = parts["down_proj.weight"], parts["up_proj.weight"]
        if down is None or up is None:
            raise AdapterError(f"{name}: Hydra's {branch} branch has only one of down_proj and up_proj: the file is incomplete")
        down, up = down.float().flatten(1), up.float().flatten(1)
        if down.shape[1] != width or up.shape[0] != out or up.shape[1] != down.shape[0]:
            raise AdapterError(
                f"{name}: Hydra's {branch} branch has down {list(down.shape)} and up {list(up.shape)}, expected [r, {width}] "
                f"and [{out}, r] for a weight of {list(weight.shape)}"
            )
        ups.append(up)
        downs.append(down if branch == "par" else down @ flat)
        inner = torch.zeros(down.shape[0]) if parts["down_proj.bias"] is None else parts["down_proj.bias"].float()
        if branch == "seq" and bias is not None:
            inner = inner + down @ bias.float()
        change += up @ inner
        if parts["up_proj.bias"] is not None:
            change += parts["up_proj.bias"].float()
    if bias is None and bool(change.any()):
        raise AdapterError(f"{name}: Hydra's bias terms are not zero, but the layer has no bias to add them to")
    down = torch.cat(downs).reshape(-1, *weight.shape[1:])
    return down, torch.cat(ups, dim=1).reshape(out, -1, *(1,) * (weight.ndim - 2)), change if bias is not None else None

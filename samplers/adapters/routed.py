"""Routed adapters: Poly (Ponti et al. 2023) and multi-head routing, MHR (Caccia et al. 2023).

S adapters share a module, ``A[s, h]`` of size (in/q, r) and ``B[s, h]`` of size (r, out/q) with q heads; a task has the
weights ``w[h, s] = sigmoid(Z)/(sum_s sigmoid(Z) + 1e-8)``. *Parameters* are averaged,

    A_bar = concat_h sum_s w[h, s] A[s, h]   (in, r),     B_bar likewise (r, out),     dW = alpha/r (A_bar B_bar)^T,

so for one task the module is a plain LoRA with ``down = A_bar^T``, ``up = B_bar^T``. It is not the sum of S LoRAs: products
of different adapters appear. Poly has one head; MHR-mu has uniform weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

from ..errors import AdapterError, suggest
from .files import AdapterFile

EPS = 1e-8


def task_names(file: AdapterFile) -> list[str]:
    """The tasks that a file names in its header (``task_names``, a JSON list); empty if it names none."""
    text = file.metadata.get("task_names", "[]")
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AdapterError(f"{file.name}: task_names in its header is {text[:80]!r}, expected a JSON list of texts")
    return names


def task_index(task: str, names: Sequence[str], tasks: int, allow_unknown: bool) -> int | None:
    """Row of the routing logits for a task given by name or number; None (uniform weights) for an unknown one if allowed.

    ``tasks`` is the number of rows. An empty task is the only row there is.
    """
    text = task.strip()
    if text in names:
        return names.index(text)
    if text.isascii() and text.isdigit() and int(text) < tasks:
        return int(text)
    if not text and tasks == 1:
        return 0
    if allow_unknown:
        return None
    known = ", ".join(names) if names else f"0 to {tasks - 1}"
    raise AdapterError(
        f"the adapter knows no task {task!r}, it knows {known}{suggest(text, names)}; or allow unknown tasks, which get uniform "
        "routing weights"
    )


def routing_weights(logits: torch.Tensor | None, row: int | None, heads: int, adapters: int, name: str) -> torch.Tensor:
    """w [heads, adapters] of one task; uniform without logits or without a row."""
    if logits is None or row is None:
        return torch.full((heads, adapters), 1.0 / adapters, dtype=torch.float64)
    logits = logits.double()
    if logits.ndim != 2 or logits.shape[1] != heads * adapters or row >= logits.shape[0]:
        raise AdapterError(
            f"{name}: routing logits {list(logits.shape)} do not fit {adapters} adapters with {heads} heads and task {row}: "
            f"expected [tasks, {heads * adapters}]"
        )
    gates = torch.sigmoid(logits[row]).reshape(heads, adapters)
    return gates / (gates.sum(dim=1, keepdim=True) + EPS)


def split_pair(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A [S, q, in/q, r] and B [S, r, q, out/q] of a module, also from files with a single unsplit adapter (2-D)."""
    if "lora_a" not in tensors or "lora_b" not in tensors:
        raise AdapterError(f"{name}: a routed adapter needs lora_a and lora_b, one is missing: the file is incomplete")
    a, b = tensors["lora_a"], tensors["lora_b"]
    if a.ndim == b.ndim == 2:  # one adapter (in, r), (r, out)
        a, b = a[None, None], b[None, :, None]
    elif a.ndim == b.ndim == 3:  # one head
        a, b = a[:, None], b[:, :, None]
    if a.ndim != 4 or b.ndim != 4 or (a.shape[0], a.shape[1], a.shape[3]) != (b.shape[0], b.shape[2], b.shape[1]):
        raise AdapterError(
            f"{name}: lora_a {list(a.shape)} and lora_b {list(b.shape)} do not belong together: expected [S, q, in/q, r] and "
            "[S, r, q, out/q] with the same S, q and r"
        )
    return a, b


def route(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(down [r, in], up [out, r]) of a task from A, B and its weights w [q, S], in float32 (averaged in float64)."""
    down = torch.einsum("qs,sqdr->rqd", weights, a.double()).flatten(1)
    up = torch.einsum("qs,srqd->qdr", weights, b.double()).flatten(0, 1)
    return down.float(), up.float()


def stack(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(down [S*r, in], up [out, S*r]) of a file whose outputs are averaged instead: ``dW = sum_s w_s (A_s B_s)^T``.

    Raises AdapterError for more than one head, for which that form is not defined.
    """
    if a.shape[1] != 1:
        raise AdapterError(f"{name}: merge_after needs one head, this adapter has {a.shape[1]}")
    down = a[:, 0].transpose(1, 2).flatten(0, 1)
    up = (weights[0, :, None, None] * b[:, :, 0].double()).flatten(0, 1).T
    return down.float(), up.float()


def logits_for(module: str, logits: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The routing logits that govern a module: those of the longest scope its name begins with (a block, or '' for all)."""
    fitting = [scope for scope in logits if not scope or module == scope or module.startswith(f"{scope}.")]
    return logits[max(fitting, key=len)] if fitting else None


def check_sizes(a: torch.Tensor, b: torch.Tensor, inside: int, outside: int, name: str) -> None:
    """Raises AdapterError unless q divides the layer's widths and the pieces fill them."""
    heads = a.shape[1]
    if inside % heads or outside % heads:
        raise AdapterError(f"{name}: {heads} heads do not divide the layer's {inside} inputs and {outside} outputs")
    if a.shape[2] * heads != inside or b.shape[3] * heads != outside:
        raise AdapterError(
            f"{name}: the adapter is made for {a.shape[2] * heads} inputs and {b.shape[3] * heads} outputs, the layer has "
            f"{inside} and {outside}"
        )

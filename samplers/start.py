"""What may happen to the start state before a plan's first stage: a jump to a later noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from .grids import Node

NodeDenoiser = Callable[[torch.Tensor, Node], torch.Tensor]


class StartTransform(Protocol):
    """``(x at source) -> (x at target)``; the plan after it begins at ``target``.

    Attributes:
        source: the node at which the caller gives the state.
        target: the plan's first node.
        nfe: evaluations that the transform itself makes.
        latents: most latent-sized tensors alive while it runs, the caller's state included.

    ``str()`` says in a few words what it does.
    """

    @property
    def source(self) -> Node: ...
    @property
    def target(self) -> Node: ...
    @property
    def nfe(self) -> int: ...
    @property
    def latents(self) -> int: ...

    def __call__(self, x: torch.Tensor, denoise: NodeDenoiser) -> torch.Tensor:
        """A new tensor; ``denoise(x, node)`` evaluates the model at a node and counts and reports it."""

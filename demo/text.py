"""From a prompt to the demo's conditioning: the one digit that the prompt names, as a one-hot class vector."""

import re

import torch
from torch import Tensor

from .errors import PromptError
from .network import CONTEXT_WIDTH, NULL_CLASS

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TOKEN = re.compile(r"[0-9]+|[a-z]+")


def parse(prompt: str) -> int:
    """Class named by ``prompt``: 0..9, or 10 (the null class) for an empty or blank prompt.

    A digit is one numeral standing alone or one English digit word, in any letter case: "7", "seven", "a red 7, please".
    Naming the same digit twice ("7, seven") is naming one digit; "17" or "3 and 4" is not.

    >>> parse("a Seven"), parse("")
    (7, 10)
    """
    if not prompt.strip():
        return NULL_CLASS
    found = []
    for token in _TOKEN.findall(prompt.lower()):
        if token in WORDS:
            found.append(WORDS.index(token))
        elif token.isdigit():
            if len(token) > 1:
                raise PromptError(f"{prompt!r} names the number {token}; {_understood()}")
            found.append(int(token))
    classes = sorted(set(found))
    if not classes:
        raise PromptError(f"{prompt!r} names no digit; {_understood()}")
    if len(classes) > 1:
        raise PromptError(f"{prompt!r} names the digits {', '.join(map(str, classes))}; {_understood()}")
    return classes[0]


def _understood() -> str:
    return "the demo draws one digit: write one numeral 0 to 9 or one word zero to nine, or leave the prompt empty for any digit"


def context_of(classes: Tensor) -> Tensor:
    """Class numbers [B] int64 in 0..10 -> context [B, 1, 11] float32, one-hot."""
    return torch.nn.functional.one_hot(classes, CONTEXT_WIDTH).float()[:, None]


def encode(prompt: str) -> Tensor:
    """Context [1, 1, 11] float32 of a prompt; see `parse` for what is understood."""
    return context_of(torch.tensor([parse(prompt)]))

"""What the last runs used: a recipe's model sampling and sigmas, so that its plan can be drawn from what ran."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

log = logging.getLogger("fewstep")
KEPT = 32


class LastRun(NamedTuple):
    """A copy of the model's ``model_sampling`` on the CPU, and the sigmas."""

    model_sampling: Any
    sigmas: tuple[float, ...]


_runs: OrderedDict[str, LastRun] = OrderedDict()  # by the recipe's JSON, newest last


def remember(recipe_json: str, model_sampling: Any, sigmas: Sequence[float]) -> None:
    """Keeps what a run uses. It must never cost a picture: an object that cannot be copied is logged and left out."""
    try:
        own = copy.deepcopy(model_sampling)
        own = own.to("cpu") if hasattr(own, "to") else own
    except Exception as error:
        log.debug("FewStep: this model's sampling is not remembered: %s", error)
        return
    _runs.pop(recipe_json, None)
    _runs[recipe_json] = LastRun(own, tuple(sigmas))
    while len(_runs) > KEPT:
        _runs.popitem(last=False)


def recall(recipe_json: str) -> LastRun | None:
    """The last run of this very recipe."""
    return _runs.get(recipe_json)


def newest() -> LastRun | None:
    """The last run of any recipe."""
    runs = list(_runs.values())
    return runs[-1] if runs else None


def forget() -> None:
    """Forgets all runs."""
    _runs.clear()

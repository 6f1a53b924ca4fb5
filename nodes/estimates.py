"""A running sampler's error estimates on their way to the browser, which draws them into the nodes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .host import get_host

if TYPE_CHECKING:
    from ..samplers.hooks import Hook

EVENT = "fewstep.estimates"
EVERY = 0.1  # seconds between two messages, at least


class EstimateFeed:
    """Sends the estimates of one run to the browser that queued it, as they come and without waiting for them.

    Each message holds all that are known: {"recipe", "sigmas" of the plan's nodes, "estimates": [[step, value]...], "done"}.
    A first one without estimates clears the drawing of the run before. Without a browser nothing is computed.

    Args:
        recipe_json: by which nodes know that it is their solver that runs.
        plan: a Plan; a solver that chooses its steps while running has no estimates.
    """

    def __init__(self, recipe_json: str, plan: Any) -> None:
        from ..samplers import Plan
        from ..samplers.estimates import Estimates

        tell = get_host().teller()
        self.hooks: tuple[Hook, ...] = ()
        self._tell = tell if isinstance(plan, Plan) else None
        if self._tell is not None:
            self._estimates = Estimates(plan)
            self.hooks = (self._estimates,)
            self._fixed = {"recipe": recipe_json, "sigmas": [node.sigma for node in plan.nodes]}
            self._send({}, done=False)

    def step(self) -> None:
        """Called after every evaluation."""
        if self._tell is not None and time.monotonic() - self._sent >= EVERY:
            self._send(self._estimates.known(), done=False)

    def end(self) -> None:
        """Called after the run, when the device has nothing more to do."""
        if self._tell is not None:
            self._send(self._estimates.all(), done=True)

    def _send(self, values: Mapping[int, float], done: bool) -> None:
        self._sent = time.monotonic()
        pairs = [[step, value if math.isfinite(value) else None] for step, value in sorted(values.items())]
        if self._tell is not None:
            self._tell(EVENT, {**self._fixed, "estimates": pairs, "done": done})

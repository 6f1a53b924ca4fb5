"""The embedded host's errors."""

from __future__ import annotations

from typing import Any


class HostInputError(ValueError):
    """An input that this host cannot work with."""


class InterruptProcessingException(Exception):
    """The run was cancelled."""


class WorkflowError(ValueError):
    """A workflow that fails validation; nothing of it was run.

    Attributes:
        error: the host's top-level error: type, message, details, extra_info.
        node_errors: by node id: {"errors": [same form], "dependent_outputs", "class_type"}.
    """

    def __init__(self, error: dict[str, Any], node_errors: dict[str, Any] | None = None) -> None:
        super().__init__(f"{error['message']} {error['details']}".strip())
        self.error, self.node_errors = error, node_errors or {}

    def as_response(self) -> dict[str, Any]:
        """The body of the host's HTTP 400."""
        return {"error": self.error, "node_errors": self.node_errors}


class NodeExecutionError(RuntimeError):
    """A node raised while it ran; ``__cause__`` is what it raised.

    Attributes:
        node_id, node_type: of the node.
        info: the host's ``execution_error`` event.
    """

    def __init__(self, node_id: str, node_type: str, info: dict[str, Any]) -> None:
        super().__init__(f"node {node_id} ({node_type}): {info['exception_message'].strip()}")
        self.node_id, self.node_type, self.info = node_id, node_type, info

"""One prompt from queueing to history: its events, its progress and its outcome."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .embedded import EmbeddedHost
from .errors import InterruptProcessingException, NodeExecutionError, WorkflowError
from .executor import Executor
from .server_events import Events, jpeg_of

log = logging.getLogger("fewstep")
PREVIEW_SECONDS = 0.1  # at least this long between two previews
KEPT = ("execution_start", "execution_cached", "execution_success", "execution_error", "execution_interrupted")


@dataclass
class Item:
    """A prompt in the queue, and later its outcome.

    Attributes:
        number: its place: lower ones run first.
        outputs: the output nodes to run.
        cancelled: stop as soon as possible.
        results: by node id what output nodes show.
        messages: the events that the history keeps.
        status: success or error, once it is done.
    """

    number: float
    prompt_id: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    outputs: list[str]
    client_id: str | None = None
    cancelled: bool = False
    results: dict[str, Any] = field(default_factory=dict)
    messages: list[list[Any]] = field(default_factory=list)
    status: str = ""

    def row(self) -> list[Any]:
        """The host's [number, id, prompt, extra_data, outputs]."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]

    def entry(self) -> dict[str, Any]:
        """The host's history entry."""
        meta = {
            i: {"node_id": i, "display_node": i, "parent_node": None, "real_node_id": i} for i in self.results
        }
        status = {"status_str": self.status, "completed": self.status == "success", "messages": self.messages}
        return {"prompt": self.row(), "outputs": self.results, "status": status, "meta": meta}


class Run:
    """Runs one item on an executor's thread and tells its client; ``emit`` is what the executor calls."""

    def __init__(self, item: Item, host: EmbeddedHost, events: Events) -> None:
        self.item, self.host, self.events = item, host, events
        self.node: str | None = None
        self._states: dict[str, dict[str, Any]] = {}
        self._previewed = 0.0

    def execute(self, executor: Executor) -> None:
        """Runs to the end, whatever happens; the outcome is in ``item``."""
        item, listener = self.item, self.host.on_progress
        self.host.on_progress, self.host.tell = self._preview, self._send if item.client_id is not None else None
        try:
            executor.execute(item.prompt, item.extra_data, prompt_id=item.prompt_id, targets=item.outputs)
        except InterruptProcessingException:
            log.info("the run was cancelled")
        except NodeExecutionError as error:
            log.error("%s", error)
        except WorkflowError as error:
            self._broken(error, str(error))
        except Exception as error:  # the server goes on with the next prompt
            log.exception("a prompt failed outside of its nodes")
            self._broken(error, f"{type(error).__name__}: {error}")
        finally:
            self.host.on_progress, self.host.tell = listener, None
        item.status = "success" if item.messages and item.messages[-1][0] == "execution_success" else "error"

    def finish(self) -> None:
        """Tells the client that it is over; called once the history has the item."""
        self.node = None
        self._send("executing", {"node": None, "prompt_id": self.item.prompt_id})

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Passes an event of the executor on, with ``progress_state`` around it."""
        if event in KEPT:
            self.item.messages.append([event, data])
        if event == "executing":
            self._finish("finished")
            self.node = data["node"]
            self._state(data["node"], "running", 0, 1)
        elif event == "progress":
            self._state(data["node"], "running", data["value"], data["max"])
        elif event == "executed":
            self.item.results[data["node"]] = data["output"]
        elif event == "execution_cached":
            for node in data["nodes"]:
                self._state(node, "finished", 1, 1, tell=False)
        elif event == "execution_success":
            self._finish("finished")
        elif event in ("execution_error", "execution_interrupted"):
            self._finish("error")
            if event == "execution_interrupted":
                node = self.node or ""
                kind = self.item.prompt.get(node, {}).get("class_type", "")
                data.update(node_id=node, node_type=kind)
        self._send(event, data)
        if event == "execution_start" and self.item.cancelled:
            self.host.interrupt()

    def _finish(self, state: str) -> None:
        if self.node is not None and self._states.get(self.node, {}).get("state") == "running":
            self._state(self.node, state, self._states[self.node]["max"], self._states[self.node]["max"])

    def _state(self, node: str, state: str, value: float, total: float, tell: bool = True) -> None:
        prompt_id = self.item.prompt_id
        self._states[node] = {
            "value": value, "max": total, "state": state, "node_id": node, "display_node_id": node, "parent_node_id": None,
            "real_node_id": node, "prompt_id": prompt_id,
        }
        if tell:
            self._send("progress_state", {"prompt_id": prompt_id, "nodes": dict(self._states)})

    def _preview(self, value: int, total: int, denoised: torch.Tensor | None) -> None:
        method, client = self.item.extra_data.get("preview_method"), self.item.client_id
        now = time.monotonic()
        if denoised is None or client is None or self.node is None or method == "none" or now - self._previewed < PREVIEW_SECONDS:
            return
        self._previewed = now
        try:
            jpeg = jpeg_of(denoised)
        except Exception:  # a preview is never worth a run
            log.debug("no preview", exc_info=True)
            return
        if jpeg is not None:
            where = {
                "node_id": self.node, "display_node_id": self.node, "parent_node_id": None, "real_node_id": self.node,
                "prompt_id": self.item.prompt_id,
            }
            self.events.send_preview(jpeg, where, client)

    def _broken(self, error: BaseException, message: str) -> None:
        """An error that no node is to blame for, in the form of one."""
        node = self.node or next(iter(self.item.outputs), "")
        self.emit("execution_error", {
            "prompt_id": self.item.prompt_id, "node_id": node,
            "node_type": self.item.prompt.get(node, {}).get("class_type", ""), "executed": [],
            "exception_message": f"{message}\n", "exception_type": type(error).__name__,
            "traceback": traceback.format_tb(error.__traceback__), "current_inputs": {}, "current_outputs": [],
            "timestamp": int(time.time() * 1000),
        })

    def _send(self, event: str, data: Mapping[str, Any]) -> None:
        if self.item.client_id is not None:
            self.events.send(event, dict(data), self.item.client_id)



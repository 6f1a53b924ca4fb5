"""The queue: prompts in order of their number, one worker thread, and the history."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any

from .embedded import EmbeddedHost
from .errors import WorkflowError
from .executor import Executor
from .server_events import Events
from .server_run import Item, Run
from .validate import Classes, error

log = logging.getLogger("fewstep")
MAX_HISTORY = 1000


class PromptQueue:
    """Prompts that wait, the one that runs, and those that are done.

    One executor runs them all, so nodes that did not change since the last prompt do not run again.
    """

    def __init__(self, host: EmbeddedHost, classes: Classes, events: Events) -> None:
        self.host, self.classes, self.events = host, classes, events
        self._lock = threading.Condition(threading.RLock())
        self._waiting: list[Item] = []
        self._running: Run | None = None
        self._history: dict[str, Item] = {}
        self._count = 0
        self._stopped = False
        self._free = False
        self._executor = self._new_executor()
        self._thread = threading.Thread(target=self._work, name="fewstep-queue", daemon=True)
        events.greeting = self._greeting

    def start(self) -> None:
        """Starts the worker."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Cancels what runs and ends the worker; waits for it this long at most."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            self.interrupt()
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)

    # what clients ask for
    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        """Queues a prompt and returns the host's answer.

        Raises WorkflowError where it fails validation, or is not there.
        """
        if "prompt" not in body:
            raise WorkflowError(error("no_prompt", "No prompt provided", "No prompt provided"))
        targets = body.get("partial_execution_targets")
        if targets is not None and not isinstance(targets, list):
            raise WorkflowError(error("invalid_prompt", "partial_execution_targets is no list of node ids"))
        checked = self._executor.check(body["prompt"], None if targets is None else [str(t) for t in targets])
        given = body.get("extra_data")
        extra = dict(given) if isinstance(given, dict) else {}
        client = body.get("client_id")
        if client is not None:
            extra["client_id"] = client
        extra["create_time"] = int(time.time() * 1000)
        with self._lock:
            number = self._number(body)
            item = Item(
                number, str(body.get("prompt_id") or uuid.uuid4()), body["prompt"], extra, checked.outputs,
                None if client is None else str(client),
            )
            self._waiting.append(item)
            self._waiting.sort(key=lambda waiting: waiting.number)
            self._lock.notify_all()
        self._tell_status()
        return {"prompt_id": item.prompt_id, "number": number, "node_errors": checked.node_errors}

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Cancels the running prompt, if it is this one; says whether there was one."""
        with self._lock:
            run = self._running
            if run is None or prompt_id not in (None, run.item.prompt_id):
                return False
            run.item.cancelled = True
            self.host.interrupt()
            return True

    def remove(self, prompt_ids: Iterable[str] | None = None) -> None:
        """Takes waiting prompts out of the queue, all by default."""
        chosen = None if prompt_ids is None else set(prompt_ids)
        with self._lock:
            self._waiting = [item for item in self._waiting if chosen is not None and item.prompt_id not in chosen]
        self._tell_status()

    def forget(self, prompt_ids: Iterable[str] | None = None) -> None:
        """Takes prompts out of the history, all by default."""
        with self._lock:
            for prompt_id in list(self._history) if prompt_ids is None else prompt_ids:
                self._history.pop(prompt_id, None)

    def free(self) -> None:
        """Forgets the results of nodes, as soon as nothing runs."""
        with self._lock:
            self._free = True
            self._lock.notify_all()

    # what clients see
    def rows(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """(running, waiting) in the host's form."""
        with self._lock:
            return [self._running.item.row()] if self._running else [], [item.row() for item in self._waiting]

    def history(self, prompt_id: str | None = None, max_items: int | None = None, offset: int | None = None) -> dict[str, Any]:
        """The host's history entries by prompt id, oldest first; the newest ``max_items``, or those from ``offset`` on."""
        with self._lock:
            items = [item for item in self._history.values() if prompt_id in (None, item.prompt_id)]
        if max_items is not None:
            start = max(len(items) - max_items, 0) if offset is None else offset
            items = items[start: start + max_items]
        elif offset is not None:
            items = items[offset:]
        return {item.prompt_id: item.entry() for item in items}

    def info(self) -> dict[str, Any]:
        """How many prompts wait or run, in the host's form."""
        with self._lock:
            return {"exec_info": {"queue_remaining": len(self._waiting) + (self._running is not None)}}

    def _number(self, body: dict[str, Any]) -> float:
        if "number" in body:
            try:
                return float(body["number"])
            except (TypeError, ValueError):
                raise WorkflowError(error("invalid_prompt", f"number is {body['number']!r}, expected a number")) from None
        self._count += 1
        return -float(self._count - 1) if body.get("front") else float(self._count - 1)

    def _greeting(self, client_id: str) -> list[tuple[str, dict[str, Any]]]:
        messages: list[tuple[str, dict[str, Any]]] = [("status", {"status": self.info(), "sid": client_id})]
        run = self._running
        if run is not None and run.item.client_id == client_id and run.node is not None:
            node = run.node
            messages.append(("executing", {"node": node, "display_node": node, "prompt_id": run.item.prompt_id}))
        return messages

    def _tell_status(self) -> None:
        self.events.send("status", {"status": self.info()})

    # the worker
    def _new_executor(self) -> Executor:
        return Executor(self.host, self.classes, emit=self._emit)

    def _emit(self, event: str, data: dict[str, Any]) -> None:
        if self._running is not None:
            self._running.emit(event, data)

    def _work(self) -> None:
        while True:
            with self._lock:
                while not (self._waiting or self._stopped or self._free):
                    self._lock.wait()
                if self._free:
                    self._executor, self._free = self._new_executor(), False
                if self._stopped:
                    return
                if not self._waiting:
                    continue
                run = self._running = Run(self._waiting.pop(0), self.host, self.events)
            try:
                run.execute(self._executor)
            finally:
                with self._lock:
                    self._running = None
                    self._history.pop(run.item.prompt_id, None)
                    self._history[run.item.prompt_id] = run.item
                    while len(self._history) > MAX_HISTORY:
                        del self._history[next(iter(self._history))]
            run.finish()
            self._tell_status()

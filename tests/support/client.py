"""A client of ComfyUI's protocol, and server processes."""

import asyncio
import contextlib
import io
import json
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import aiohttp
import numpy as np
from PIL import Image

PATIENCE = 120.0  # seconds


class Process:
    """A server in a process, with its output in a file."""

    def __init__(self, popen, log):
        self.popen, self.log = popen, log

    def text(self):
        return self.log.read_text("utf-8", "replace")

    def check(self):
        assert self.popen.poll() is None, self.text()[-3000:]

    def wait_for_address(self):
        """The address that ``fewstep serve`` prints."""
        return self.wait_for(lambda: next((word for word in self.text().split() if word.startswith("http://")), None))

    def wait_for(self, find):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.check()
            found = find()
            if found:
                return found
            time.sleep(0.1)
        raise TimeoutError(self.text()[-3000:])


@contextlib.contextmanager
def started(command, log, env, folder=None):
    with log.open("w") as out:
        popen = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=folder)
    try:
        yield Process(popen, log)
    finally:
        popen.terminate()
        popen.wait(20)


class Server:
    def __init__(self, url, process):
        self.url, self.process = url, process
        process.wait_for(self._answers)

    def _answers(self):
        try:
            return self.get("/system_stats")
        except OSError:
            return None

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def json(self, path):
        return json.loads(self.get(path))

    def post(self, path, body):
        """(status, JSON or None); ``body`` as bytes is sent as it is."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, data = error.code, error.read()
        return status, json.loads(data) if data.startswith((b"{", b"[")) else None

    def upload(self, name, content):
        """The answer to an uploaded picture."""
        lines = ["--end", f'Content-Disposition: form-data; name="image"; filename="{name}"', "Content-Type: image/png", "", ""]
        body = "\r\n".join(lines).encode() + content + b"\r\n--end--\r\n"
        request = urllib.request.Request(self.url + "/upload/image", body, {"Content-Type": "multipart/form-data; boundary=end"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def queue(self, prompt, **more):
        """The id of a prompt that was taken."""
        status, answer = self.post("/prompt", {"prompt": prompt, **more})
        assert status == 200 and not answer["node_errors"], answer
        return answer["prompt_id"]

    def entry(self, prompt_id):
        """The history entry of a prompt, once it is done."""
        return self.process.wait_for(lambda: self.json(f"/history/{prompt_id}").get(prompt_id))

    def run(self, prompt):
        return self.entry(self.queue(prompt))

    def images(self, entry, node=None):
        """The pictures of a finished prompt, or of one of its nodes."""
        assert entry["status"]["status_str"] == "success", entry["status"]
        outputs = entry["outputs"].values() if node is None else [entry["outputs"][node]]
        files = [urllib.parse.urlencode(file) for output in outputs for file in output.get("images", ())]
        return [np.asarray(Image.open(io.BytesIO(self.get(f"/view?{file}")))) for file in files]

    def error(self, entry):
        """The ``execution_error`` of a prompt that failed."""
        assert entry["status"]["status_str"] == "error" and not entry["status"]["completed"], entry["status"]
        return next(data for event, data in entry["status"]["messages"] if event == "execution_error")

    def listen(self, client_id):
        return Listener(self, client_id)


class Listener:
    """An open websocket; what arrives is kept: [(event, data)], and previews as ("preview", bytes)."""

    def __init__(self, server, client_id):
        self.url = f"{server.url}/ws?clientId={client_id}"
        self.events, self.fault = [], None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read()), daemon=True)

    def __enter__(self):
        self._thread.start()
        self.wait("status")
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._close.set)
        self._thread.join(10)

    async def _read(self):
        self._loop, self._close = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(self.url) as socket:
                closing = asyncio.create_task(self._close.wait())
                while not closing.done():
                    message = asyncio.create_task(socket.receive())
                    await asyncio.wait([message, closing], return_when=asyncio.FIRST_COMPLETED)
                    if closing.done():
                        message.cancel()
                    elif message.result().type == aiohttp.WSMsgType.TEXT:
                        data = json.loads(message.result().data)
                        self._put((data["type"], data["data"]))
                    elif message.result().type == aiohttp.WSMsgType.BINARY:
                        self._put(("preview", message.result().data))
                    else:
                        return
        except Exception as fault:
            self.fault = fault
            self._put(("fault", {}))

    def _put(self, event):
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def of(self, event, **where):
        """The data of all events of a kind so far."""
        return [data for kind, data in self.events if kind == event and all(data.get(k) == v for k, v in where.items())]

    def wait(self, event, **where):
        """The data of the first event of a kind, when it has come."""
        with self._changed:
            came = self._changed.wait_for(lambda: self.fault or self.of(event, **where), PATIENCE)
        assert came and not self.fault, (event, self.fault, [kind for kind, _ in self.events][-20:])
        return self.of(event, **where)[0]

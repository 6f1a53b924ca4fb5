"""Sittings in a browser, and ``fewstep serve``, for the tests in ``tests/browser``."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FRONTENDS = [None, *filter(None, [os.environ.get("FEWSTEP_FRONTEND")])]
OPTIONAL = re.compile(  # what the frontend asks for and does without: files that no user has made, and other hosts
    r"/api/userdata/(user\.css|comfy\.templates\.json)$|^https://(api\.comfy\.org|huggingface\.co)/"
)


def playwright():
    """The name under which node finds playwright-core from here, or None."""
    name, node = os.environ.get("FEWSTEP_PLAYWRIGHT", "playwright-core"), shutil.which("node")
    found = node and subprocess.run(
        [node, "-e", f"require.resolve({name!r})"], cwd=ROOT / "tests" / "browser", capture_output=True, check=False).returncode == 0
    return name if found else None


PLAYWRIGHT = playwright()
NEEDS = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(PLAYWRIGHT is None, reason="node or its package playwright-core is not installed (FEWSTEP_PLAYWRIGHT)"),
    pytest.mark.skipif(not os.environ.get("FEWSTEP_FRONTEND") and importlib.util.find_spec("comfyui_frontend_package") is None,
                       reason="the frontend's wheel is not installed: pip install comfyui-frontend-package==1.35.9"),
]


@contextlib.contextmanager
def serving(pack, folder, frontend=None):
    """The address of ``fewstep serve`` with the pack of that folder."""
    (folder / "fewstep").symlink_to(pack)
    command = [sys.executable, "-m", "fewstep", "serve", "--port", "0", "--out", str(folder / "out")]
    command += [] if frontend is None else ["--frontend", frontend]
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()  # written once the server listens
        assert "serves on" in line, line
        yield next(word for word in line.split() if word.startswith("http"))
    finally:
        process.terminate()
        process.communicate(timeout=20)


def errors(seen):
    """Uncaught errors and errors in the console, without those that say that an optional file is not there."""
    missing = [[text, url] for text, url in seen["console"] if "Failed to load resource" in text and OPTIONAL.search(url)]
    return seen["errors"] + [entry for entry in seen["console"] if entry not in missing]


def session(script, folder, **job):
    """What a script of ``tests/browser`` saw in a browser; a picture of the page as it broke off is kept where it says one."""
    done = subprocess.run(["node", str(ROOT / "tests" / "browser" / script), json.dumps({"chromium": CHROMIUM, **job})],
                          capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "FEWSTEP_PLAYWRIGHT": PLAYWRIGHT})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "broke" not in seen, f"{seen['broke']}\nThe page then: {seen.get('picture')}\nIts errors: {errors(seen)}"
    return seen


def sitting(folder, **job):
    """What ``tests/browser/sitting.cjs`` saw."""
    shots = Path(os.environ.get("FEWSTEP_SHOTS", folder)) / job.pop("name", "page")
    return session("sitting.cjs", folder, **{"shots": str(shots), "pack": "fewstep", "vue": False, "theme": "dark", "parts": [], **job})

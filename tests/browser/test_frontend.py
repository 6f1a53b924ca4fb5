"""The real frontend in a real browser, against ``fewstep serve``: a template opens, is queued, and its pictures appear.

Needs chromium, node with playwright-core (FEWSTEP_PLAYWRIGHT names its folder if node does not find it) and the frontend's
wheel. FEWSTEP_FRONTEND names a folder with another version of the frontend to test as well.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FRONTENDS = [None, *filter(None, [os.environ.get("FEWSTEP_FRONTEND")])]


def playwright():
    """The name under which node finds playwright-core, or None."""
    name = os.environ.get("FEWSTEP_PLAYWRIGHT", "playwright-core")
    node = shutil.which("node")
    found = node and subprocess.run([node, "-e", f"require.resolve({name!r})"], capture_output=True, check=False).returncode == 0
    return name if found else None


@pytest.fixture(params=FRONTENDS, ids=lambda folder: "installed" if folder is None else "given")
def server(request, tmp_path):
    """The address of a server on a free port."""
    if request.param is None and importlib.util.find_spec("comfyui_frontend_package") is None:
        pytest.skip("the frontend's wheel is not installed: pip install comfyui-frontend-package==1.35.9")
    (tmp_path / "fewstep").symlink_to(ROOT)
    command = [sys.executable, "-m", "fewstep", "serve", "--port", "0", "--out", str(tmp_path / "out")]
    command += [] if request.param is None else ["--frontend", request.param]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "serves on" in line, line
        url = next(word for word in line.split() if word.startswith("http"))
        for _ in range(50):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.skipif(playwright() is None, reason="node or its package playwright-core is not installed (FEWSTEP_PLAYWRIGHT)")
def test_a_template_opens_and_queue_gives_its_pictures(server, tmp_path):
    name = "inpainting"
    job = {
        "url": server, "chromium": CHROMIUM, "workflow": str(ROOT / "example_workflows" / f"{name}.json"),
        "screenshot": os.environ.get("FEWSTEP_SCREENSHOT", str(tmp_path / "page.png")), "profile": str(tmp_path / "profile"),
    }
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("drive.cjs")), json.dumps(job)], capture_output=True, text=True, timeout=240,
        check=False, env={**os.environ, "FEWSTEP_PLAYWRIGHT": playwright()})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "broke" not in seen, seen
    assert seen["errors"] == [], "no uncaught error in the page"
    assert not any("missing" in text.lower() for text in (*seen["dialogs"], *seen["lateDialogs"])), seen
    twin = json.loads((ROOT / "tests" / "data" / "workflows" / f"{name}.json").read_text("utf-8"))
    plain = {i: (node["class_type"], node["inputs"]) for i, node in seen["prompt"].items()}
    assert plain == {i: (node["class_type"], node["inputs"]) for i, node in twin.items()}, "the frontend reads the drawing as we do"
    assert "execution_success" in seen["events"] and "execution_error" not in seen["events"] and "progress" in seen["events"]
    pictures = [entry for entry in seen["pictures"] if entry[0] == "SaveImage"]
    assert len(pictures) == 8 and all(width == 64 for _, width, _ in pictures)

"""The real frontend in a real browser, against ``fewstep serve``: a template is opened in the gallery, Run is pressed, and its
pictures appear, without an error in the page.

Needs chromium, node with playwright-core (FEWSTEP_PLAYWRIGHT names its folder if node does not find it) and the frontend's
wheel. FEWSTEP_FRONTEND names a folder with another version of the frontend to test as well; FEWSTEP_SCREENSHOT a file.
"""

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
        [node, "-e", f"require.resolve({name!r})"], cwd=Path(__file__).parent, capture_output=True, check=False).returncode == 0
    return name if found else None


PLAYWRIGHT = playwright()
pytestmark = [
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


def drive(url, template, folder):
    """What ``drive.cjs`` saw while it ran a template."""
    job = {"url": url, "chromium": CHROMIUM, "pack": "fewstep", "template": template, "profile": str(folder / "profile"),
           "screenshot": os.environ.get("FEWSTEP_SCREENSHOT", str(folder / "page.png"))}
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("drive.cjs")), json.dumps(job)], capture_output=True, text=True, timeout=240,
        check=False, env={**os.environ, "FEWSTEP_PLAYWRIGHT": PLAYWRIGHT})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "broke" not in seen, seen
    return seen


def errors(seen):
    """Uncaught errors and errors in the console, without those that say that an optional file is not there."""
    missing = [[text, url] for text, url in seen["console"] if "Failed to load resource" in text and OPTIONAL.search(url)]
    return seen["errors"] + [entry for entry in seen["console"] if entry not in missing]


@pytest.mark.parametrize("frontend", FRONTENDS, ids=lambda folder: "installed" if folder is None else "given")
def test_a_template_opens_and_queue_gives_its_pictures(frontend, tmp_path):
    template, count = "inpainting", 8
    with serving(ROOT, tmp_path, frontend) as url:
        seen = drive(url, template, tmp_path)
    assert errors(seen) == []
    assert all(OPTIONAL.search(path) for _, path in seen["failed"]), seen["failed"]
    assert not any("missing" in text.lower() for text in (*seen["dialogs"], *seen["lateDialogs"])), seen
    twin = json.loads((ROOT / "tests" / "data" / "workflows" / f"{template}.json").read_text("utf-8"))
    plain = {i: (node["class_type"], node["inputs"]) for i, node in seen["prompt"].items()}
    assert plain == {i: (node["class_type"], node["inputs"]) for i, node in twin.items()}, "the frontend reads the drawing as we do"
    assert "execution_success" in seen["events"] and "execution_error" not in seen["events"]
    assert {"progress", "b_preview_with_metadata"} <= set(seen["events"])
    pictures = [entry for entry in seen["pictures"] if entry[0] == "SaveImage"]
    assert len(pictures) == count and all(width == 64 for _, width, _ in pictures)


def test_errors_of_the_packs_extension_are_seen(tmp_path):
    """Else the test above would prove nothing: a copy of the pack with a faulty script."""
    skipped = shutil.ignore_patterns(".git", ".venv", "node_modules", "tests", "__pycache__", "out", ".*_cache", "*.egg-info")
    pack = shutil.copytree(ROOT, tmp_path / "faulty-pack", ignore=skipped)
    (pack / "web").mkdir(exist_ok=True)
    (pack / "web" / "faulty.js").write_text("console.error('said on purpose'); setTimeout(() => { throw new Error('thrown on purpose') })")
    with serving(pack, tmp_path) as url:
        found = json.dumps(errors(drive(url, "first_picture", tmp_path)))
    assert "said on purpose" in found and "thrown on purpose" in found and "/extensions/fewstep/faulty.js" in found

"""The real frontend in a real browser, against ``fewstep serve``: a template is opened in the gallery, Run is pressed, and its
pictures appear, without an error in the page.

Needs chromium, node with playwright-core (FEWSTEP_PLAYWRIGHT names its folder if node does not find it) and the frontend's
wheel. FEWSTEP_FRONTEND names a folder with another version of the frontend to test as well; FEWSTEP_SCREENSHOT a file.
"""

import json
import os
import shutil

import pytest
from chrome import FRONTENDS, NEEDS, OPTIONAL, ROOT, errors, serving, session

pytestmark = NEEDS


def drive(url, template, folder):
    """What ``drive.cjs`` saw while it ran a template."""
    screenshot = os.environ.get("FEWSTEP_SCREENSHOT", str(folder / "page.png"))
    return session("drive.cjs", folder, url=url, pack="fewstep", template=template, screenshot=screenshot)


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

"""The page has no error; and errors of the pack would be seen."""

import json
import shutil

from chrome import NEEDS, ROOT, errors, serving, sitting

pytestmark = NEEDS


def test_the_page_has_no_error(seen):
    assert seen["faults"] == [] and seen["refusals"] == []


def test_errors_of_the_packs_extension_are_seen(tmp_path):
    """Else the test above would prove nothing: a copy of the pack with a faulty script."""
    skipped = shutil.ignore_patterns(".git", ".venv", "node_modules", "tests", "__pycache__", "out", ".*_cache", "*.egg-info")
    pack = shutil.copytree(ROOT, tmp_path / "faulty-pack", ignore=skipped)
    (pack / "web" / "faulty.js").write_text("console.error('said on purpose'); setTimeout(() => { throw new Error('thrown on purpose') })")
    with serving(pack, tmp_path) as url:
        found = json.dumps(errors(sitting(tmp_path, url=url)))
    assert "said on purpose" in found and "thrown on purpose" in found and "/extensions/fewstep/faulty.js" in found

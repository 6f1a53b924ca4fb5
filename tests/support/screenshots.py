"""Pictures of the templates in both themes, and the page that shows them: ``python tests/support/screenshots.py [template...]``.

Needs what the tests in ``tests/browser`` need. Writes ``docs/screenshots``, ``docs/templates.md`` and the README's gallery.
"""

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # elsewhere the tests have done this
    _spec = importlib.util.spec_from_file_location("conftest", Path(__file__).resolve().parents[1] / "conftest.py")
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))

import fewstep
from chrome import ROOT, serving, sitting
from PIL import Image

FOLDER, PAGE, README = ROOT / "docs" / "screenshots", ROOT / "docs" / "templates.md", ROOT / "README.md"
NAMES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
THEMES = ("light", "dark")
USUAL = {"FewStepDemoCheckpoint", "FewStepSchedule"}  # in nearly every template
HEAD = """# The templates

Every workflow of `example_workflows/`, as it looks after a run: in ComfyUI's gallery of templates they stand under the pack's
name. They run on the embedded demo model, so no file has to be fetched. `python tests/support/screenshots.py` makes this page
and its pictures anew.
"""


def picture(name, folder="screenshots", more=""):
    """HTML that shows the picture of the reader's own theme."""
    return (f'<picture><source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.webp">'
            f'<img src="{folder}/{name}-light.webp" alt="The template {name} after a run"{more}></picture>')


def gallery():
    """The README's part: every template, small, as a link to its place on the page."""
    shown = (picture(name, "docs/screenshots", f' title="{name}" width="200"') for name in NAMES)
    links = (f'<a href="docs/templates.md#{name}">{html}</a>' for name, html in zip(NAMES, shown, strict=True))
    return "\n".join(["<!-- templates -->", *links, "<!-- end of templates -->"])


def sentence(text):
    """The first one; "et al." ends none."""
    return re.split(r"(?<!et al)\. ", text, maxsplit=1)[0].rstrip(".") + "."


def page():
    """The text of ``docs/templates.md``: by template, the nodes it shows and their first sentences."""
    parts = [HEAD]
    for name in NAMES:
        drawing = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
        kinds = dict.fromkeys(node["type"] for node in drawing["nodes"])
        shown = [fewstep.NODE_CLASS_MAPPINGS[kind] for kind in kinds if kind in fewstep.NODE_CLASS_MAPPINGS and kind not in USUAL]
        words = [f"- *{node.DISPLAY_NAME.removesuffix(' (FewStep)')}*: {sentence(node.DESCRIPTION)}" for node in shown]
        parts.append("\n".join([f"## {name}", "", *words, *([""] if words else []), picture(name), ""]))
    return "\n".join(parts)


def main(names):
    """Takes the pictures of these templates and writes the page."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(ROOT, Path(folder)) as url:
        for theme in THEMES:
            shots = Path(folder) / theme
            shots.mkdir()
            seen = sitting(shots, url=url, theme=theme, parts=["templates"], templates=names)
            assert all(seen["templates"].values()), seen["templates"]
            for name in names:
                with Image.open(shots / f"page-{name}.png") as taken:
                    taken.convert("RGB").save(FOLDER / f"{name}-{theme}.webp", quality=80, method=6)
    PAGE.write_text(page(), "utf-8")
    text = README.read_text("utf-8")
    README.write_text(re.sub(r"<!-- templates -->.*<!-- end of templates -->", lambda _: gallery(), text, flags=re.S), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or NAMES)

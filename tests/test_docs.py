"""The documents' code runs, and the two commands of the README are the ones that CI and users run."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import screenshots

ROOT = Path(__file__).resolve().parents[1]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text("utf-8"), re.S)


@pytest.mark.parametrize("name", ["README.md", "docs/adding_a_solver.md", "docs/distilled_loras.md", "docs/distillation.md"])
def test_python_blocks_run(name, capsys):
    found = blocks(name)
    assert found
    for block in found:
        exec(compile(block, name, "exec"), {})


ADAPTERS = [f"samplers.adapters{part}" for part in ("", ".families", ".names", ".strength", ".targets", ".trained_times")]


@pytest.mark.parametrize("module", ["samplers", "samplers.frames", "samplers.grids", "samplers.recipe", "samplers.correctors.compensation", *ADAPTERS])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"fewstep.{module}"))
    assert result.attempted > 0 and result.failed == 0


def test_ci_runs_the_readme_test_command():
    readme = (ROOT / "README.md").read_text("utf-8")
    command = next(line for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines() if "pytest" in line)
    assert command in readme


def test_the_shown_solver_is_the_real_one():
    """The walk-through's code, comments aside, is what stands in the solver's file."""
    shown = re.search(r"def combined_ddim.*?\n```", (ROOT / "docs/adding_a_solver.md").read_text("utf-8"), re.S)
    real = (ROOT / "samplers/solvers/deis.py").read_text("utf-8")
    assert shown
    for line in shown.group(0).splitlines()[:-1]:
        assert re.sub(r"\s*# \d$", "", line).strip() in real, line


def test_a_solver_file_stays_short():
    for path in (ROOT / "samplers").rglob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 300, path


def test_the_core_imports_no_host():
    for path in (ROOT / "samplers").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (comfy|folder_paths|server|execution|nodes|latent_preview)\b", path.read_text("utf-8"), re.M), path


def test_every_template_is_shown_in_both_themes():
    """The page, the README's gallery and the pictures are those of today's templates."""
    assert screenshots.PAGE.read_text("utf-8") == screenshots.page()
    assert screenshots.gallery() in (ROOT / "README.md").read_text("utf-8")
    assert {path.name for path in screenshots.FOLDER.iterdir()} == {f"{n}-{t}.webp" for n in screenshots.NAMES for t in screenshots.THEMES}

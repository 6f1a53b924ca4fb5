"""Golden data: numbers of the papers' official code on the analytic mixture.

Reads every file of the folder named by FEWSTEP_GOLDEN (default ``tests/data/golden``) and takes all settings from each
case's metadata; ``tests/support/golden`` holds a runner per system. A case of a system that is not built yet is skipped
by name.
"""

import json
import os
from pathlib import Path

import pytest
from golden import runners
from golden.case import Case
from safetensors import safe_open

FOLDER = Path(os.environ.get("FEWSTEP_GOLDEN") or Path(__file__).parents[1] / "data" / "golden")
RUNNERS = runners()


def settings_by_case(head):
    """The settings of each case; a file without a list of cases has one JSON object per case."""
    if "cases" not in head:
        values = {name: json.loads(text) for name, text in sorted(head.items()) if text.startswith("{")}
        return {name: value for name, value in values.items() if isinstance(value, dict)}
    listed = json.loads(head["cases"])
    return {c["name"]: c for c in listed if isinstance(c, dict)} or {name: json.loads(head.get(name, "{}")) for name in listed}


def cases():
    found = sorted(FOLDER.glob("*.safetensors"))
    assert found, f"no golden files in {FOLDER}"
    for path in found:
        with safe_open(path, "pt") as file:
            head = file.metadata()
        for name, settings in settings_by_case(head).items():
            system = next((n for n, r in RUNNERS.items() if r.accepts(head, settings)), None)
            yield pytest.param(path, name, settings, system, id=f"{path.stem}-{name}")


@pytest.mark.parametrize(("path", "name", "settings", "system"), list(cases()))
def test_golden(path, name, settings, system):
    if system is None:
        pytest.skip(f"{name}: the system of {path.name} is not built yet")
    RUNNERS[system].run(Case(path, name, settings))


def test_a_case_belongs_to_one_system():
    for case in cases():
        path, name, settings, system = case.values
        with safe_open(path, "pt") as file:
            head = file.metadata()
        takers = [n for n, r in RUNNERS.items() if settings and r.accepts(head, settings)]
        assert takers == ([system] if system else []), name

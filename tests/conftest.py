"""Imports the pack as ``fewstep`` from this checkout, installed or not, whatever the folder is called."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if "fewstep" not in sys.modules:
    spec = importlib.util.spec_from_file_location("fewstep", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["fewstep"] = package
    spec.loader.exec_module(package)

sys.path.append(str(Path(__file__).parent / "support"))  # what several test files share

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other


def pytest_collection_modifyitems(items):
    """``pytest tests -m cuda`` runs all that only a GPU can show; without one those tests are skipped."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is False"))

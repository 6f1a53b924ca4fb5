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

import torch  # noqa: E402

torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other

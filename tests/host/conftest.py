"""The same fixtures as for the nodes."""

import importlib.util
from pathlib import Path

_path = Path(__file__).resolve().parents[1] / "nodes" / "conftest.py"
_spec = importlib.util.spec_from_file_location("fewstep_test_fixtures", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
gaussian, host, text = _module.gaussian, _module.host, _module.text

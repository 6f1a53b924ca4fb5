"""The package: light to import, complete as a wheel, and the same files as the pack."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's files, unpacked. Built from a copy of what the pack needs, so that the checkout stays clean."""
    import shutil

    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    skip = shutil.ignore_patterns("__pycache__", ".git", ".venv", "node_modules", "tests", "out", "*.egg-info", "build", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "-q", "-w", str(base)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    (file,) = base.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(base / "site")
    return base / "site"


def test_the_wheel_holds_every_module_and_data_file(wheel):
    for folder in ("samplers", "nodes", "host", "demo"):
        wanted = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts}
        assert wanted <= {p.relative_to(wheel / "fewstep") for p in (wheel / "fewstep").rglob("*.py")}
    for data in (
        "demo/weights/digits_eps.safetensors", "samplers/adapters/presets.json", "example_workflows/first_picture.json", "py.typed",
        "demo/calibration/digits-eps-plan-cfg2.safetensors", "samplers/advice.json", "locales/zh/nodeDefs.json",
        "subgraphs/FewStep Text to Image.json", "web/docs/FewStepUniPC.md", "web/docs/FewStepUniPC.png",
    ):
        assert (wheel / "fewstep" / data).exists(), data
    assert not (wheel / "fewstep" / "tests").exists()


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    code = (
        "import fewstep, fewstep.samplers as s; p = s.make_plan('unipc', s.frames.edm(), [9.0, 3.0, 1.0, 0.0]);"
        "print(fewstep.__file__, p.nfe, 'FewStepUniPC' in fewstep.NODE_CLASS_MAPPINGS)"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
                         cwd=tmp_path, env={"PYTHONPATH": str(wheel), "PATH": ""}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert str(wheel) in ran.stdout and "3 True" in ran.stdout


LOAD = """if True:
    import importlib.util, json, sys, time
    import torch
    before, start = set(sys.modules), time.process_time()
    spec = importlib.util.spec_from_file_location("pack", {root!r} + "/__init__.py", submodule_search_locations=[{root!r}])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
    nodes = module.NODE_CLASS_MAPPINGS
    inputs = [node.INPUT_TYPES() for node in nodes.values()]
    took = time.process_time() - start
    new = {{name.split(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names) - {{"pack"}}
    print(json.dumps([len(inputs), sorted(new), took]))
"""


def test_importing_the_pack_is_light(tmp_path):
    """What ComfyUI pays at its start beyond torch, in a fresh process: the node list and every node's inputs."""
    ran = subprocess.run([sys.executable, "-c", LOAD.format(root=str(ROOT))], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    count, new, seconds = json.loads(ran.stdout)
    assert count >= 22
    assert set(new) <= {"numpy", "safetensors", "einops"}, "no other package is imported"
    assert seconds < 0.5, "processor time, so that a busy machine does not count"

"""Picture files, example workflows, and the command line as a user meets it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import fewstep
import pytest
import torch
from fewstep.host import stock_ids
from fewstep.host.errors import HostInputError
from fewstep.host.executor import Executor, all_classes
from fewstep.host.files import load_pictures, save_images
from fewstep.host.stock_images import LoadImage, PreviewImage
from fewstep.host.workflows import sample_workflow
from PIL import Image

ROOT = Path(fewstep.__file__).parent
EXAMPLES = sorted((ROOT / "tests" / "data" / "workflows").glob("*.json"))  # the templates' API forms
FIRST = ROOT / "example_workflows" / "first_picture.json"


# files

def test_pictures_carry_their_workflow(tmp_path):
    pixels = torch.tensor([0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 4, 1).expand(2, 3, 4, 3)
    prompt, workflow = {"1": {"class_type": "Ü", "inputs": {}}}, {"nodes": []}
    saved = save_images(pixels, tmp_path, "digits/seven", prompt, {"workflow": workflow})
    assert saved == [{"filename": f"seven_0000{i}_.png", "subfolder": "digits"} for i in (1, 2)]
    with Image.open(tmp_path / "digits" / "seven_00002_.png") as picture:
        assert (picture.size, picture.mode) == ((4, 3), "RGB")
        assert [picture.getpixel((x, 0))[0] for x in range(4)] == [0, 127, 255, 255]
        assert json.loads(picture.text["prompt"]) == prompt and json.loads(picture.text["workflow"]) == workflow
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == ["seven_00001_.png", "seven_00002_.png"]


def test_placeholders_in_names(tmp_path):
    (entry,) = save_images(torch.zeros(1, 8, 16, 3), tmp_path, "%year%/a_%width%x%height%_%other%")
    assert re.fullmatch(r"20\d\d", entry["subfolder"]) and entry["filename"] == "a_16x8_%other%_00001_.png"


def test_numbers_go_on_after_the_highest(tmp_path):
    pixels = torch.zeros(1, 8, 8, 3)
    for name in ("a_00007_.png", "a_b_00050_.png", "a_x_.png", "A_00009_.png"):
        (tmp_path / name).write_bytes(b"")
    assert save_images(pixels, tmp_path, "a")[0]["filename"] == "a_00010_.png"


@pytest.mark.parametrize("prefix", ["../a", "/tmp/a", "a/../../b", "", ".", "a/"])
def test_files_stay_in_the_output_folder(tmp_path, prefix):
    with pytest.raises(HostInputError, match="filename_prefix"):
        save_images(torch.zeros(1, 8, 8, 3), tmp_path / "out", prefix)
    assert not list(tmp_path.rglob("*.png"))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_images(torch.zeros(1, 8, 8, 3), tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_previews_are_temporary(host):
    first, second = (PreviewImage().save_images(torch.zeros(1, 8, 8, 3))["ui"]["images"][0] for _ in range(2))
    assert first["type"] == "temp" and first["filename"] != second["filename"]
    assert (host.temp_directory / first["filename"]).exists()


def test_pictures_are_loaded_with_their_transparency(tmp_path):
    Image.new("RGBA", (4, 2), (255, 51, 0, 102)).save(tmp_path / "a.png")
    pictures, mask = load_pictures(tmp_path / "a.png")
    assert pictures.shape == (1, 2, 4, 3) and mask.shape == (1, 2, 4)
    torch.testing.assert_close(pictures[0, 0, 0], torch.tensor([1.0, 0.2, 0.0]))
    torch.testing.assert_close(mask[0, 1, 3], torch.tensor(0.6))
    frames = [Image.new("L", (4, 2), grey) for grey in (0, 255)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    pictures, mask = load_pictures(tmp_path / "b.gif")
    assert pictures.mean((1, 2, 3)).tolist() == [0, 1] and mask.shape == (2, 64, 64) and not mask.any()
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(HostInputError, match="not a readable picture"):
        load_pictures(tmp_path / "c.png")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "sub/../../secret.png", "none.png", "", "secret.png [output]"])
def test_only_pictures_of_the_input_folder_are_loaded(host, tmp_path, name):
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    (host.input_directory / "sub").mkdir(parents=True)
    assert "there is no picture" in LoadImage.VALIDATE_INPUTS(name)
    with pytest.raises(HostInputError, match="there is no picture"):
        LoadImage().load_image(name)


# workflows

@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_complete_and_run(path, host):
    prompt = json.loads(path.read_text())
    executor = Executor(host)
    assert executor.check(prompt).node_errors == {}
    for node in prompt.values():  # every required input is written out, so that other hosts fill in nothing
        types = all_classes()[node["class_type"]].INPUT_TYPES()
        assert set(types["required"]) <= set(node["inputs"]) <= set(types["required"]) | set(types.get("optional", {}))
    if {node["class_type"] for node in prompt.values()} & {"FewStepLoadCalibration", "FewStepLoadDistilledLoRA"}:
        return  # their files belong to the real demo model, which test_templates runs
    images = next(ui["images"] for ui in executor.execute(prompt).ui.values() if "images" in ui)
    assert len(images) >= (1 if path.stem == "compare_solvers" else 4)  # that one is a labelled grid
    assert all((host.output_directory / image["filename"]).stat().st_size > 50 for image in images)


def test_there_are_examples():
    assert FIRST.exists() and FIRST.stem in [p.stem for p in EXAMPLES]
    assert "SamplerCustom" in stock_ids()


# command line

def test_run_writes_pictures_and_says_so(cli, tmp_path):
    done = cli("run", FIRST, "--out", "pictures")
    assert done.exit_code == 0, done.output
    *files, last = done.stdout.strip().splitlines()
    assert re.fullmatch(r"sampling took \d+\.\d\d s", last)
    assert files == [os.path.join("pictures", f"first_picture_0000{i}_.png") for i in range(1, 5)]
    with Image.open(tmp_path / files[0]) as picture:
        assert picture.size == (64, 64)
        api = next(p for p in EXAMPLES if p.stem == FIRST.stem)
        assert json.loads(picture.text["prompt"]) == json.loads(api.read_text())
        assert json.loads(picture.text["workflow"]) == json.loads(FIRST.read_text())  # a drawing goes along as it is


def test_a_picture_beside_the_workflow_is_changed(cli, tmp_path):
    """Load Image, with its file in the workflow's own folder or in another one."""
    Image.new("L", (64, 64), 128).save(tmp_path / "grey.png")
    prompt = sample_workflow(form="eps", prompt="3", negative="", batch=1, size=64, seed=4, steps=4, cfg=1.0, solver="unipc",
                             schedule="uniform_t", options={})
    prompt["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["9", 0], "vae": ["1", 2]}}
    prompt["9"] = {"class_type": "LoadImage", "inputs": {"image": "grey.png"}}
    prompt["6"]["inputs"]["denoise"] = 0.5
    (tmp_path / "work.json").write_text(json.dumps(prompt))
    assert cli("run", "work.json", "--out", "made").exit_code == 0
    assert len(list((tmp_path / "made").glob("*.png"))) == 1
    (tmp_path / "other").mkdir()
    done = cli("run", "work.json", "--out", "made", "--input", "other")
    assert done.exit_code == 2 and "there is no picture 'grey.png' in other" in done.stderr


def test_the_default_graph_runs_on_the_demo_only_when_asked(cli, tmp_path):
    prompt = sample_workflow(form="eps", prompt="3", negative="", batch=1, size=64, seed=4, steps=4, cfg=1.0, solver="unipc",
                             schedule="uniform_t", options={})
    prompt["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}}
    (tmp_path / "default.json").write_text(json.dumps(prompt))
    refused = cli("run", "default.json", "--out", "made")
    assert refused.exit_code == 2 and "--demo-checkpoint" in refused.stderr and not (tmp_path / "made").exists()
    done = cli("run", "default.json", "--out", "made", "--demo-checkpoint")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "made").glob("*.png"))) == 1


def test_a_picture_makes_itself_again(cli, tmp_path):
    words = ("--prompt", "3", "--steps", 5, "--solver", "deis_ab", "--schedule", "karras", "--cfg", 3, "--batch", 2, "--seed", 9)
    done = cli("sample", *words, "--form", "flow", "--option", "basis=rho", "--order", 1)
    assert done.exit_code == 0, done.output
    first = tmp_path / done.stdout.splitlines()[1]
    again = cli("run", first, "--out", "second")
    assert again.exit_code == 0, again.output
    with Image.open(first) as a, Image.open(tmp_path / again.stdout.splitlines()[1]) as b:
        assert a.tobytes() == b.tobytes() and a.text == b.text
        nodes = {n["class_type"]: n["inputs"] for n in json.loads(a.text["prompt"]).values()}
    assert nodes["FewStepDEIS"] == {"basis": "rho", "ab_order": 1}


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_sde_singlestep", "unipc"])
def test_sample_with_presets_and_with_options(cli, solver):
    assert cli("sample", "--solver", solver, "--steps", 1).exit_code == 0
    option = {"ddim": "eta=0.5", "dpm_solver_sde_singlestep": "r=0.4", "unipc": "disable_corrector=0, 2"}[solver]
    done = cli("sample", "--solver", solver, "--option", option)
    assert done.exit_code == 0, done.output
    with Image.open(done.stdout.splitlines()[0]) as picture:
        widgets = json.loads(picture.text["prompt"])["5"]["inputs"]
    assert widgets.get("method") == ("singlestep" if "sde" in solver else None)


@pytest.mark.parametrize(("words", "message"), [
    (("sample", "--solver", "unipcc"), "did you mean 'unipc'"),
    (("sample", "--option", "ordr=3"), "did you mean 'order'"),
    (("sample", "--option", "order=99"), "bigger than its maximum 6"),
    (("sample", "--option", "order"), "name=value"),
    (("sample", "--order", "6", "--steps", "3"), "lower the order or add steps"),
    (("sample", "--form", "sd"), "'form' is 'sd'"),
    (("sample", "--prompt", "17"), "names the number 17"),
    (("sample", "--steps", "0"), "--steps"),
    (("sample", "--solver", "deis_rk", "--order", "2"), "no order to choose"),
    (("plan", "--solver", "x"), "unknown solver 'x'"),
    (("plan", "--frame", "sd"), "frame is 'sd'"),
    (("plan", "--schedule", "karas"), "did you mean 'karras'"),
    (("plan", "--end", "middle"), "end is 'middle'"),
    (("plan", "--order", "9", "--steps", "9"), "from 1 to 6"),
    (("plan", "--solver", "dpm_solver_adaptive", "--plot", "p.png"), "no plan to draw"),
    (("plan", "--plot", "missing/p.png"), "cannot write missing"),
    (("draw",), "draw"),
])
def test_bad_input_exits_with_2_and_says_what_to_do(cli, tmp_path, words, message):
    done = cli(*words)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output and not list(tmp_path.iterdir())


def test_an_error_while_running_exits_with_1(cli, gaussian, monkeypatch):
    def broken(self, *args, **kwargs):
        raise RuntimeError("out of order")

    monkeypatch.setattr(gaussian.Net, "forward", broken)
    done = cli("sample")
    assert (done.exit_code, "out of order" in done.stderr) == (1, True)


def test_ctrl_c_exits_with_130(cli, gaussian, monkeypatch, tmp_path):
    def pressed(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(gaussian.Net, "forward", pressed)
    done = cli("sample")
    assert (done.exit_code, "interrupted" in done.stderr) == (130, True)
    assert not list(tmp_path.rglob("*.png"))


def test_plan_prints_the_table_and_draws(cli, tmp_path):
    done = cli("plan", "--solver", "unipc", "--order", 3, "--steps", 6, "--frame", "flow", "--option", "disable_corrector=[0]")
    assert done.exit_code == 0, done.output
    assert "unipc(disable_corrector=(0,), order=3)" in done.stdout and "6 evaluations" in done.stdout
    shown = re.findall(r"^\d+ +([\d.]+) +\S+ +M_", done.stdout, re.MULTILINE)
    assert [float(s) for s in shown] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], rel=1e-5)  # what the node gives
    assert cli("plan", "--solver", "deis_ab", "--end", "stop", "--frame", "linear_vp", "--plot", "p.png").exit_code == 0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size[0] > 300
    assert "chosen while running" in cli("plan", "--solver", "dpm_solver_adaptive", "--frame", "edm").stdout


def test_solvers_lists_every_option(cli):
    listed = cli("solvers").stdout
    for word in ("unipc", "disable_corrector", "vary_coeff", "deis_rk", "tableau", "unic (corrector)"):
        assert word in listed


def _process(*words, **changes):
    folder = str(Path(fewstep.__file__).parent)
    loader = f"""if True:
        import importlib.util, runpy, sys
        spec = importlib.util.spec_from_file_location("fewstep", {folder!r} + "/__init__.py", submodule_search_locations=[{folder!r}])
        module = importlib.util.module_from_spec(spec); sys.modules["fewstep"] = module; spec.loader.exec_module(module)
        {changes.get('before', 'pass')}
        sys.argv = ["fewstep", *sys.argv[1:]]
        runpy.run_module("fewstep", run_name="__main__")
    """
    return [sys.executable, "-c", loader, *map(str, words)]


def test_help_is_fast_and_python_m_works():
    before = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    done = subprocess.run(_process("--help", before=before), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Exit codes" in done.stdout
    assert done.stdout.strip().endswith("False")  # no torch for a help text


def test_a_missing_package_names_the_extra():
    done = subprocess.run(_process("solvers", before="sys.modules['typer'] = None"), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'fewstep[host]'" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_real_interrupt_in_a_real_process(tmp_path):
    """Ctrl-C while the network runs: exit 130, no picture, no traceback."""
    before = "\n        ".join([
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)",  # a shell's background jobs inherit it ignored
        "import time, torch, types, numpy as np, fewstep.nodes.demo_parts as parts",
        "def net(x, t, context=None): print('evaluating', flush=True); time.sleep(20); return x",
        "table = np.linspace(0.99, 0.01, 1000)",
        "parts.load_demo = lambda form: types.SimpleNamespace(net=net, prediction='eps', alphas_cumprod=table)",
    ])
    command = _process("sample", "--out", tmp_path, before=before)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "evaluating\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []

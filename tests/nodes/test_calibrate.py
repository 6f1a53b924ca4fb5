"""The calibrating nodes in the embedded host: files, reports, interruption and resumption, refusals."""

import errno
import os
import pickle
import re

import numpy as np
import pytest
import torch
from fewstep.demo.schedule import alphas_cumprod
from fewstep.host.calibrate_command import NODES, Method, calibration_workflow
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.errors import InterruptProcessingException, NodeExecutionError, WorkflowError
from fewstep.host.executor import Executor
from fewstep.host.stock import EmptyLatentImage
from fewstep.nodes import NODE_CLASS_MAPPINGS
from fewstep.samplers import Recipe, frames, grids, run
from fewstep.samplers.calibration import measure_statistics, store
from fewstep.samplers.calibration.statistics import Statistics
from fewstep.samplers.errors import FewStepError

SMALL = {
    Method.statistics: {}, Method.moments: {"kind": "channel", "samples": 8, "range_samples": 1}, Method.ratios: {"samples": 2, "method": "line"},
    Method.plan: {"samples": 8, "rounds": 1, "iterations": 2},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folders", [])
    monkeypatch.setitem(measure_statistics.PRESETS, "draft", (4, 4))
    return tmp_path / "models"


def workflow(method, *, form="eps", cfg=4.0, **options):
    return calibration_workflow(
        NODES[method], form=form, prompts=["3", "7"], cfg=cfg, steps=4, schedule="uniform_t", solver="unipc", batch=4, seed=0,
        options={"name": "made", **SMALL[method], **options},
    )


def execute(prompt, folder, on_progress=None):
    host = EmbeddedHost(folder.parent / "out", models_directory=folder, on_progress=on_progress)
    return host, Executor(host).execute(prompt, {})


@pytest.mark.parametrize("method", SMALL)
def test_a_file_is_made_and_found_again(method, folder):
    seen = []
    _, result = execute(workflow(method), folder, lambda done, total, _: seen.append((done, total)))
    made, report, curves = (slot[0] for slot in result.values["7"])
    assert seen[-1][0] <= seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [p.name for p in (folder / "fewstep").iterdir()] == ["made.safetensors"], "no partial state is left"
    assert f"{seen[-1][1]} evaluations" in report and curves.shape[-1] == 3
    found = store.load(made.reference, made.calibration.purpose)
    assert found.meta["guidance"] == 4.0 and found.meta["size"] == [4, 8, 8] and found.model is not None
    if "gain" in found.meta:
        assert "On unseen noise" in report or "NO GAIN" in report


@pytest.mark.parametrize("method", SMALL)
def test_an_interrupted_calibration_ends_with_the_same_file(method, folder, tmp_path):
    _, _ = execute(workflow(method), folder)
    whole = (folder / "fewstep" / "made.safetensors").read_bytes()
    other, count = tmp_path / "other", [0]
    store._folders.clear()

    def stop(done, total, _):
        count[0] += 1
        if count[0] in (2, 4):
            raise InterruptProcessingException("cancelled")

    prompt = workflow(method)
    for _ in range(2):
        with pytest.raises((InterruptProcessingException, NodeExecutionError)):
            execute(prompt, other, stop)
        assert list((other / "fewstep").glob("*.partial")) and not list((other / "fewstep").glob("*.safetensors"))
    execute(prompt, other)
    assert (other / "fewstep" / "made.safetensors").read_bytes() == whole
    assert not list((other / "fewstep").glob("*.partial"))


def test_the_cost_is_told_without_work(folder):
    calls = []
    _, result = execute(workflow(Method.ratios, count_only=True), folder, lambda *a: calls.append(a))
    assert "evaluations" in result.values["7"][1][0] and not calls and not list((folder / "fewstep").glob("*"))


def test_statistics_are_judged_on_the_connected_schedule(folder):
    """Without a schedule on 8 steps of its own; the verdict follows the errors."""
    prompt = workflow(Method.statistics, cfg=1.0)
    reports = {}
    for connected in (True, False):
        if not connected:
            del prompt["7"]["inputs"]["sigmas"]
        _, result = execute(prompt, folder)
        made, reports[connected], _ = (slot[0] for slot in result.values["7"])
        gain = made.calibration.meta["gain"]
        assert gain["steps"] == (4 if connected else 8)
        assert ("NO GAIN" in reports[connected]) == (gain["calibrated"] >= gain["plain"])
    assert "steps 4" in reports[True] and "steps 8" in reports[False]


def load(form, file, folder, **more):
    prompt = {
        "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": form}},
        "2": {"class_type": "FewStepLoadCalibration", "inputs": {"model": ["1", 0], "file": file, **more}},
        "3": {"class_type": "FewStepPlanInspector", "inputs": {"model": ["1", 0], "sampler": ["4", 0], "sigmas": ["5", 0]}},
        "4": {"class_type": "FewStepDynamicCompensation", "inputs": {
            "sampler": ["6", 0], "calibration": ["2", 0], "ratios": "", "guidance": 4.0, "dc_order": 2}},
        "5": {"class_type": "FewStepSchedule", "inputs": {"model": ["1", 0], "kind": "uniform_t", "steps": 4, "denoise": 1.0}},
    }
    prompt["6"] = workflow(Method.ratios)["6"]
    return execute(prompt, folder)


def test_a_file_belongs_to_its_model_and_steps(folder):
    execute(workflow(Method.ratios), folder)
    load("eps", "made.safetensors", folder)
    with pytest.raises(NodeExecutionError, match="another model"):
        load("v", "made.safetensors", folder)
    load("v", "made.safetensors", folder, allow_other_model=True)


@pytest.mark.parametrize(("options", "words"), [
    ({"name": "../up"}, "no file name"), ({"samples": 0}, "samples"), ({"sampler": 3}, "sampler"),
])
def test_bad_settings_are_named_before_anything_runs(options, words, folder):
    prompt = workflow(Method.ratios)
    prompt["7"]["inputs"].update(options)
    host = EmbeddedHost(folder.parent / "out", models_directory=folder)
    with pytest.raises(WorkflowError, match=words):
        Executor(host).check(prompt)
    assert not (folder / "fewstep").exists()


@pytest.mark.parametrize("method", SMALL)
def test_a_model_that_returns_nan_is_named(method, folder, monkeypatch):
    from fewstep.host.model import HostModel

    monkeypatch.setattr(HostModel, "apply_model", lambda self, x, sigma, context: torch.full_like(x, float("nan")))
    with pytest.raises(NodeExecutionError, match="NaN"):
        execute(workflow(method), folder)
    assert not list((folder / "fewstep").glob("*.safetensors"))


@pytest.mark.parametrize("method", SMALL)
def test_a_full_disk_leaves_nothing(method, folder, monkeypatch):
    def full(path, data):
        with open(path, "wb") as file:
            file.write(data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(NodeExecutionError, match="No space left"):
        execute(workflow(method), folder)
    assert not list((folder / "fewstep").glob("*"))


@pytest.mark.parametrize("method", SMALL)
def test_a_latent_without_pictures_is_named(method, folder, monkeypatch):
    monkeypatch.setattr(EmptyLatentImage, "generate", lambda *args, **more: ({"samples": torch.zeros(0, 4, 8, 8)},))
    with pytest.raises(NodeExecutionError, match="holds no pictures"):
        execute(workflow(method), folder)
    assert not list((folder / "fewstep").glob("*"))


@pytest.mark.parametrize(("method", "options"), [
    (Method.moments, {"samples": 0}), (Method.moments, {"range_samples": 0}), (Method.ratios, {"samples": 0}),
    (Method.plan, {"samples": 0}),
])
def test_no_samples_are_refused_before_anything_runs(method, options, folder):
    host = EmbeddedHost(folder.parent / "out", models_directory=folder)
    with pytest.raises(WorkflowError, match=next(iter(options))):
        Executor(host).check(workflow(method, **options))


def test_latents_that_do_not_suffice_are_named(folder):
    prompt = workflow(Method.moments, source="latents")
    prompt["8"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    prompt["7"]["inputs"]["latents"] = ["8", 0]
    with pytest.raises(NodeExecutionError, match="1 latents were given"):
        execute(prompt, folder)
    assert not list((folder / "fewstep").glob("*.safetensors"))


@pytest.mark.parametrize(("content", "words"), [
    (lambda whole: whole[:-7], "damaged"), (lambda whole: whole[:5], "damaged"), (lambda whole: b"", "damaged"),
    (lambda whole: pickle.dumps({"ratios": [1.0]}), "damaged"), (lambda whole: whole.replace(b"fewstep_calibration", b"another_programme_s"), "not a FewStep"),
])
def test_the_loader_names_files_that_it_cannot_read(content, words, folder):
    """Cut off, empty, a pickle under another name, another program's."""
    store.add_folder(folder / "fewstep")
    store.save(store.Calibration("ratios", {"ratios": torch.ones(4)}, {"steps": 4}), folder / "fewstep" / "whole.safetensors")
    whole = (folder / "fewstep" / "whole.safetensors").read_bytes()
    (folder / "fewstep" / "bad.safetensors").write_bytes(content(whole))
    with pytest.raises(NodeExecutionError, match=words):
        load("eps", "bad.safetensors", folder)
    (folder / "fewstep" / "bad.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(WorkflowError, match=r"bad\.pt"):
        load("eps", "bad.pt", folder)


def test_statistics_of_another_size_are_refused():
    """Per element they hold for one size; ratios, plans and statistics per channel for all."""
    lam = np.linspace(-3.0, 3.0, 9)
    one = torch.ones(9, 4, 8, 8, dtype=torch.float64)
    frame = frames.edm()
    plan = Recipe("dpm_solver_v3", {"statistics": Statistics(lam, one, 0 * one, 0 * one)}).resolve(
        frame, grids.karras(frame, 5, end="zero", t_T=14.0, t_0=0.06))
    with pytest.raises(FewStepError, match="8"):
        run(plan, lambda x, s: x * 0, torch.randn(1, 4, 16, 16))


@pytest.mark.parametrize(("method", "words", "widgets"), [
    (Method.plan, r"the defaults take about ([\d,]+) for 5 steps, with SDXL too the time of (\d+) pictures of 20", {}),
    (Method.plan, r"64 samples and 4 rounds take ([\d,]+)", {"samples": 64, "rounds": 4}),
    (Method.statistics, r"The draft takes about ([\d,]+) evaluations, with SDXL too the time of (\d+) pictures of 20", {}),
])
def test_the_evaluations_that_are_told_are_those_of_the_settings_picture_by_picture(method, words, widgets):
    node = NODE_CLASS_MAPPINGS[NODES[method]]
    inputs = {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES()["optional"]}
    defaults = {name: options["default"] for name, (_, options) in inputs.items() if "default" in options}
    frame = frames.discrete_vp(alphas_cumprod()).unit_alpha()
    chosen = {**defaults, "sigmas": torch.tensor(grids.uniform_t(frame, 5, end="zero").sigma) if method is Method.plan else None, **widgets}
    count = node().cost(frame, 1, chosen)
    said, *pictures = (int(number.replace(",", "")) for number in re.search(words, node.DESCRIPTION).groups())
    assert said == pytest.approx(count, rel=0.02) and pictures == pytest.approx([count / 20] * len(pictures), rel=0.03)
    if not widgets:
        assert count < 4500, "minutes on one GPU for a model of SDXL's size"

"""The calibrating nodes in the embedded host: files, reports, interruption and resumption, refusals."""

import errno
import os

import numpy as np
import pytest
import torch
from fewstep.host.calibrate_command import NODES, Method, calibration_workflow
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.errors import InterruptProcessingException, NodeExecutionError, WorkflowError
from fewstep.host.executor import Executor
from fewstep.samplers import Recipe, frames, grids, run
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.statistics import Statistics
from fewstep.samplers.errors import FewStepError

SMALL = {
    Method.moments: {"kind": "channel", "samples": 8, "range_samples": 1}, Method.ratios: {"samples": 2, "method": "line"},
    Method.plan: {"samples": 8, "rounds": 1, "iterations": 2},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folders", [])
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


def test_a_model_that_returns_nan_is_named(folder, monkeypatch):
    from fewstep.host.model import HostModel

    monkeypatch.setattr(HostModel, "apply_model", lambda self, x, sigma, context: torch.full_like(x, float("nan")))
    for method in SMALL:
        with pytest.raises(NodeExecutionError, match="NaN"):
            execute(workflow(method), folder)
        assert not list((folder / "fewstep").glob("*.safetensors"))


def test_a_full_disk_leaves_nothing(folder, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(NodeExecutionError, match="No space left"):
        execute(workflow(Method.ratios), folder)
    assert not list((folder / "fewstep").glob("*"))


def test_statistics_of_another_size_are_refused():
    """Per element they hold for one size; ratios, plans and statistics per channel for all."""
    lam = np.linspace(-3.0, 3.0, 9)
    one = torch.ones(9, 4, 8, 8, dtype=torch.float64)
    frame = frames.edm()
    plan = Recipe("dpm_solver_v3", {"statistics": Statistics(lam, one, 0 * one, 0 * one)}).resolve(
        frame, grids.karras(frame, 5, end="zero", t_T=14.0, t_0=0.06))
    with pytest.raises(FewStepError, match="8"):
        run(plan, lambda x, s: x * 0, torch.randn(1, 4, 16, 16))

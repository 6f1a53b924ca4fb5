"""The shipped LoRAs: what their files say, what they draw in 4 calls, and that the script trains them resumably."""

import copy
import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from fewstep.demo import (
    classifier,
    data,
    distill,
    distilled,
    measure,
    measure_distilled,
    model,
    sampling,
    schedule,
    text,
    weights,
)
from fewstep.demo.errors import DemoError
from fewstep.samplers import adapters
from fewstep.samplers.calibration.fingerprint import Fingerprint
from fewstep.samplers.distillation import LowRank
from fewstep.samplers.errors import Interrupted
from safetensors.torch import load_file

NAMES = [job.name for job in distill.JOBS]


def test_every_job_is_shipped():
    assert distilled.names() == sorted(NAMES)
    with pytest.raises(DemoError, match="the demo has the LoRAs digits_eps_dmd2"):
        distilled.load_distilled("none")


@pytest.mark.parametrize("job", distill.JOBS, ids=NAMES)
def test_files_say_what_they_are(job):
    loaded = distilled.load_distilled(job.name)
    facts = loaded.facts
    assert json.loads(facts["training"]) == asdict(job) and facts["method"] == job.method
    assert facts["base"] == f"digits_{job.form}" and loaded.guidance == job.guidance == float(facts["guidance"])
    assert json.loads(facts["timesteps"]) == [999, 749, 499, 249]
    assert "confidence high" in loaded.report and "WARNING" not in loaded.report
    assert (facts["steps"], facts["cfg"], facts["rank"]) == ("4", "1", "8")
    tried = json.loads(facts.get("distances", '{"8": 0}'))
    assert float(facts["alpha"]) == float(min(tried, key=tried.get)) and ("distances" in facts) == (job.guidance != 1)
    assert facts["update"] == {"tdm": "ddim", "dmd2": "renoise"}[job.method]
    base = model.load(job.form)
    state = {f"diffusion_model.{name}": value for name, value in base.net.state_dict().items()}
    stated = Fingerprint.from_data(json.loads(facts["base_fingerprint"]))
    assert stated.difference(Fingerprint.of(state)) is None
    for other in set(model.FORMS) - {job.form}:
        wrong = {f"diffusion_model.{name}": value for name, value in model.load(other).net.state_dict().items()}
        assert "weights differ" in stated.difference(Fingerprint.of(wrong))
    # the sampler's levels are the trained steps of the model's own table, and then zero
    levels = [node.sigma for node in loaded.plan.nodes]
    if job.form == "flow":
        np.testing.assert_allclose(levels, [1.0, 0.75, 0.5, 0.25, 0.0], atol=1e-12)
    else:
        np.testing.assert_allclose(levels[:-1], [14.614641, 4.081729, 1.612886, 0.693205], rtol=1e-6)
    assert weights.lora_path(job.name).stat().st_size < 2**19


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_merged_weights_do_the_same(name):
    """What the loader merges, against the additions that were trained."""
    loaded = distilled.load_distilled(name)
    base = model.load(loaded.model.form)
    net = copy.deepcopy(base.net)
    adapter = LowRank(net, 8, alpha=float(loaded.facts["alpha"]))
    tensors = load_file(weights.lora_path(name))
    assert set(tensors) == set(adapter.tensors())
    for key, value in adapter.tensors().items():
        value.copy_(tensors[key])
    x, t = torch.randn(4, 4, 8, 8), torch.tensor([999.0, 749.0, 499.0, 249.0])
    context = text.context_of(torch.tensor([0, 3, 9, 10]))
    with adapter.active():
        added = net(x, t, context)
    assert torch.allclose(loaded.model.net(x, t, context), added, atol=1e-4)
    assert not torch.allclose(base.net(x, t, context), added, atol=1e-2)


@pytest.mark.parametrize("name", [n for n in NAMES if "_tdm_" in n])
def test_four_calls_stand_for_eight_steps_of_the_base(name):
    """Against the same update in twice the steps at equal guidance; 360 pictures, the shipped table has more of everything."""
    loaded, held = distilled.load_distilled(name), data.load()[1]
    real = (measure.features(held.latents()), held.labels.numpy())
    base = model.load(loaded.model.form)
    plan = measure_distilled.base_plan(base, "ddim", {}, "uniform_t", 8)
    found = measure.quality(sampling.draw(loaded.model, loaded.plan, held.labels, seed=1), held.labels, *real)
    drawn = sampling.draw(base, plan, held.labels, guidance=loaded.guidance, seed=1)
    wanted = measure.quality(drawn, held.labels, *real)
    assert loaded.plan.nfe == 4 and found["accuracy"] >= 0.98
    # the distance of 360 pictures differs by about 0.015 from one noise to another
    assert found["fd_whole"][0] <= wanted["fd_whole"][0] + 0.03


def test_the_shipped_tables_are_of_the_shipped_numbers():
    folder = distill.LOGS
    result = json.loads((folder / "distilled.json").read_text())
    parts = measure_distilled.table(result["rows"], result["seed"]), measure_distilled.paired_table(result["rows"])
    assert "\n".join(parts) == (folder / "distilled.md").read_text()
    readme, results = (folder / "README.md").read_text(), (folder.parent / "docs" / "results.md").read_text()
    assert all(line in readme for part in parts for line in part.splitlines())
    assert all(line in results for line in parts[1].splitlines())


def test_differences_are_paired_by_noise(monkeypatch):
    """Both sides follow the noise; their difference is 0.01 or 0.03 at every one. The best sampler is the best on average."""
    monkeypatch.setattr(measure_distilled, "names", lambda: ["lora"])

    def row(sampler, steps, seed, distance, accuracy):
        return {"form": "eps", "guidance": 2.0, "sampler": sampler, "steps": steps, "seed": seed, "fd_whole": [distance, 0.0], "accuracy": accuracy}

    rows = [row("lora", 4, seed, 0.2 + 0.1 * seed + extra, 0.99) for seed, extra in ((1, 0.03), (0, 0.01))]
    rows += [row("UniPC", 8, seed, 0.2 + 0.1 * seed, 1.0) for seed in (0, 1)] + [row("DEIS", 8, seed, 0.3, 1.0) for seed in (0, 1)]
    rows += [row(words, 8, seed, 0.9, 1.0) for words, *_ in measure_distilled.SAMPLERS[:3] for seed in (0, 1)]
    *_, line = measure_distilled.paired_table(rows).splitlines()
    assert line == "| lora | 0.270 | 99.00 % | UniPC | 0.250 | 100.00 % | +0.020 ± 0.010 | -1.00 ± 0.00 |"


@pytest.mark.parametrize("name", [n for n in NAMES if "_dmd2_" in n])
def test_renoising_draws_digits(name):
    loaded = distilled.load_distilled(name)
    classes = torch.arange(10).repeat(12)
    drawn = sampling.draw(loaded.model, loaded.plan, classes, seed=1)
    assert (classifier.load().predict(drawn) == classes).float().mean() >= 0.95
    again = sampling.draw(loaded.model, loaded.plan, classes, seed=1, batch=50)
    assert torch.allclose(drawn, again, atol=1e-3)


@pytest.mark.parametrize("job", [j for j in distill.JOBS if j.guidance == 2], ids=lambda j: j.name)
def test_the_script_trains_resumably(tmp_path, monkeypatch, job):
    monkeypatch.setattr(weights, "LORAS", tmp_path / "loras")
    monkeypatch.setattr(distill, "LOGS", tmp_path)
    monkeypatch.setattr(distill, "LOG_EVERY", 4)
    monkeypatch.setattr(distill, "PER_CLASS", 2)
    distill.teacher_features.cache_clear()
    job = replace(job, iterations=4, batch=4)
    distill.train(job, tmp_path / "a", [])
    path = weights.lora_path(job.name)
    whole = adapters.open_adapter(path)
    expected = {key: value.clone() for key, value in whole.tensors.items()}
    path.unlink()
    trainer, _ = distill.make(job)
    with pytest.raises(Interrupted, match="after 3 iterations"):
        trainer.run(checkpoint=tmp_path / "b" / f"{job.name}.safetensors", should_stop=lambda: trainer.step == 3)
    with pytest.raises(Interrupted, match="after 3 iterations"):
        distill.train(job, tmp_path / "b", [2])
    distill.train(job, tmp_path / "b", [])
    again = adapters.open_adapter(path)
    assert again.metadata == whole.metadata and set(again.tensors) == set(expected)
    assert all(torch.equal(value, again.tensors[key]) for key, value in expected.items())
    with open(tmp_path / f"distillation_log_{job.name}.csv") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["4"]


@pytest.mark.parametrize("job", distill.JOBS, ids=NAMES)
def test_shipped_logs_belong_to_the_shipped_files(job):
    with open(distill.LOGS / f"distillation_log_{job.name}.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["iteration"] == str(job.iterations)
    assert float(rows[-1]["student_loss"]) < float(rows[0]["student_loss"])


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@torch.no_grad()
def test_training_denoiser_is_the_samplers(form):
    """The trainer's D(x, t, prompts) and the host-like D(x, sigma) agree at the same state."""
    loaded = model.load(form)
    denoise, table = distill.denoiser(loaded, loaded.net), distill.table_of(loaded)
    t, prompts = torch.tensor([0, 249, 749, 999]), torch.tensor([1, 2, 3, -1])
    x = torch.randn(4, 4, 8, 8)
    context = text.context_of(torch.where(prompts < 0, 10, prompts))
    if form == "flow":
        state, level = x, table.sigma[t].float()
    else:
        level = torch.from_numpy(schedule.k_sigmas(schedule.alphas_cumprod())[t]).float()
        state = x / table.at(t, x)[0]
    torch.testing.assert_close(denoise(x, t, prompts), loaded.denoiser(context)(state, level), rtol=1e-3, atol=1e-3)

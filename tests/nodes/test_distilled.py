"""LoRA nodes in the embedded host, on a plain network with the demo's interface: weights, settings, warnings, errors, cache."""

import json
import math
import shutil

import pytest
import torch
from demo_loras import DEMO, SHAPES, checkpoint, load, lora_file, run, sampled, weights
from fewstep.host.errors import HostInputError
from fewstep.nodes import NODE_CLASS_MAPPINGS as CLASSES
from fewstep.nodes.graph import files_before, used_after
from fewstep.nodes.sampling import recipe_of
from fewstep.samplers.errors import AdapterError
from safetensors.torch import save_file


def test_the_loader_patches_the_weights_and_gives_the_files_own_settings(embedded):
    model, clip, _ = checkpoint()
    changed, same_clip, sampler, sigmas, cfg, steps, report = load(model=model, clip=clip, strength=0.5)
    tensors = lora_file(embedded.loras / "again.safetensors")
    before, after = weights(model), weights(changed)
    for name, shape in SHAPES.items():
        down, up = (tensors[f"diffusion_model.{name}.lora_{part}.weight"].double().flatten(1) for part in ("down", "up"))
        expected = before[f"{name}.weight"].double() + 0.5 * 1.0 / 2 * (up @ down).reshape(shape)
        torch.testing.assert_close(after[f"{name}.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    untouched = [k for k in before if k.removesuffix(".weight") not in SHAPES]
    assert all(torch.equal(before[k], after[k]) for k in untouched) and same_clip is clip
    table = model.model.model_sampling.sigmas
    assert torch.equal(sigmas, torch.cat([table[[999, 749, 499, 249]], torch.zeros(1)]))
    assert (cfg, steps, recipe_of(sampler).solver) == (1.0, 4, "consistency")
    assert "3 of 3 modules used" in report and "A guidance of 2.0 is folded" in report and "WARNING" not in report
    assert "rank 2, alpha 1 (the file's alpha), strength 0.5: 0.25 in all" in report


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_the_loaded_model_samples_with_its_own_settings(embedded, form):
    model, clip, _ = checkpoint(form)
    changed, _, sampler, sigmas, cfg, _, _ = load(model=model)
    with_lora, without = (sampled(m, clip, sampler, sigmas, cfg) for m in (changed, model))
    assert torch.isfinite(with_lora).all() and (with_lora - without).abs().max() > 1e-3
    if form == "flow":
        assert sigmas.tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_strength_zero_leaves_the_model_alone(embedded):
    model, *_ = checkpoint()
    changed, _, _, sigmas, *_, report = load(model=model, strength=0.0)
    assert changed is model and "strength is 0" in report and len(sigmas) == 5


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_strength_must_be_a_number(embedded, strength):
    with pytest.raises(AdapterError, match="finite number"):
        load(strength=strength)


def test_wrong_settings_visibly_warn(embedded):
    *_, cfg, steps, report = load(steps=20, cfg=7.0)
    assert (cfg, steps) == (7.0, 20)
    first = report.splitlines()[:2]
    assert first[0].startswith("WARNING: 20 steps") and first[1].startswith("WARNING: CFG 7")


def test_overrides_reach_the_outputs(embedded):
    _, _, sampler, sigmas, _, steps, _ = load(times="999, 499", sampler="tcd", gamma=0.5, cfg=1.0)
    assert (steps, recipe_of(sampler).solver, recipe_of(sampler).options["gamma"]) == (2, "tcd", 0.5) and len(sigmas) == 3
    assert len(load(denoise=0.5)[3]) == 3
    assert load(form="flow", shift=3.0)[3].tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert load(steps=2, cfg=1.5)[4:6] == (1.5, 2)


def test_a_scale_of_the_users_own_stands_in_for_a_missing_alpha(embedded):
    save_file({k: v for k, v in lora_file(embedded.loras / "x.safetensors").items() if "alpha" not in k}, embedded.loras / "x.safetensors")
    found = [load("x.safetensors", scale=scale, **more)[-1] for scale, more in ((0.125, {}), (0.0, {}), (0.5, {"strength": 0.5}))]
    assert [text.split(" in all")[0].split(": ")[-1] for text in found] == ["0.125", "1", "0.25"]


def test_an_uncertain_file_gets_plain_settings_and_keeps_its_strength(embedded):
    *_, sampler, _, cfg, steps, report = load("sub/plain.safetensors")
    assert (recipe_of(sampler).solver, cfg, steps) == ("ddim", 1.0, 8) and "no preset was chosen" in report
    *_, report = load("sub/plain.safetensors", preset="lcm")
    assert "preset lcm" in report and "confidence given" in report


def test_two_distilled_files_on_one_model_warn(embedded):
    once = load()
    *_, report = load(model=once[0])
    assert "digits.safetensors is on this model already: the strengths of distilled LoRAs add up" in report
    assert "already" not in once[-1] and "already" not in load("sub/plain.safetensors")[-1]


def test_a_file_that_states_its_base_model_is_held_to_it(embedded):
    from fewstep.samplers.calibration.fingerprint import Fingerprint

    model, *_ = checkpoint("eps")
    stated = json.dumps(Fingerprint.of(embedded.weights(model)[0]).to_data())
    lora_file(embedded.loras / "digits.safetensors", metadata={**DEMO, "fewstep.base": "digits_eps", "fewstep.base_fingerprint": stated})
    assert "trained on" not in load(model=model)[-1]
    assert "trained on" not in load(model=load("sub/plain.safetensors", model=model)[0])[-1]  # another LoRA on it is no other base
    assert "was trained on digits_eps, the loaded model is another one: its weights differ by" in load(form="v")[-1]


def test_a_users_presets_are_in_the_list_and_a_broken_file_is_named(embedded):
    own = {"method": "Mine", "label": "mine", "families": ["digits"], "names": ["plain"], "steps": 3, "grid": {"kind": "trailing"},
           "solver": "ddim", "cfg": 2, "cfg_range": [1, 3]}
    path = embedded.loras / "fewstep_presets.json"
    path.write_text(json.dumps({"format": 1, "presets": {"mine": own}}))
    assert "mine" in CLASSES["FewStepLoadDistilledLoRA"].INPUT_TYPES()["required"]["preset"][0]
    *_, cfg, steps, report = load("sub/plain.safetensors")
    assert (cfg, steps) == (2.0, 3) and "preset mine" in report
    path.write_text("{")
    assert "mine" not in CLASSES["FewStepLoadDistilledLoRA"].INPUT_TYPES()["required"]["preset"][0]
    with pytest.raises(AdapterError, match="fewstep_presets.json cannot be read"):
        load()


def test_bad_files_are_refused_by_name(embedded):
    (embedded.loras / "cut.safetensors").write_bytes((embedded.loras / "digits.safetensors").read_bytes()[:900])
    (embedded.loras / "old.pt").write_bytes(b"PK")
    lora_file(embedded.loras / "sd15.safetensors", {"down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768)}, base="lora_unet_{}")
    for name, message in {"cut.safetensors": "not a readable", "old.pt": "convert-lora", "sd15.safetensors": "Stable Diffusion 1.5"}.items():
        with pytest.raises(AdapterError, match=message):
            load(name)
    with pytest.raises(HostInputError, match="there is no file 'gone"):
        load("gone.safetensors")
    with pytest.raises(HostInputError, match="there is no file"):
        load("../loras/digits.safetensors")


# the cache and the workflow around
def graph(**sampler):
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_turbo.safetensors"}},
        "2": {"class_type": "FewStepLoadDistilledLoRA", "inputs": {"model": ["1", 0], "lora_name": "digits.safetensors"}},
        "3": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["2", 0]}},
        "4": {"class_type": "SamplerCustom", "inputs": {"model": ["3", 0], "cfg": 1.0, **sampler}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["9", 0], "cfg": 9.0, "steps": 50}},
    }


def test_the_workflow_around_is_read():
    prompt = graph(cfg=7.0, steps=20)
    assert files_before(prompt, "2", "model") == [("CheckpointLoaderSimple", "sd_xl_turbo.safetensors")]
    assert files_before(prompt, "4", "model")[0] == ("FewStepLoadDistilledLoRA", "digits.safetensors")
    assert ("SamplerCustom", {"cfg": 7.0, "steps": 20}) in used_after(prompt, "2") and len(used_after(prompt, "2")) == 2
    assert dict(used_after(graph(steps=8, sigmas=["2", 3]), "2"))["SamplerCustom"] == {"cfg": 1.0}  # its steps are not used
    loop = {"a": {"class_type": "X", "inputs": {"model": ["a", 0], "file": "x.ckpt"}}}
    assert files_before(loop, "a", "model") == [("X", "x.ckpt")] and len(used_after(loop, "a")) == 1
    assert files_before(None, None, "model") == [] == used_after(None, None)


def test_contradictions_in_the_workflow_warn_and_run_the_node_anew(embedded):
    node = CLASSES["FewStepLoadDistilledLoRA"]
    *_, report = load(prompt=graph(cfg=7.0, steps=20), node_id="2")
    assert "sd_xl_turbo.safetensors is loaded before and looks distilled already" in report
    assert "SamplerCustom after this node has 20 steps" in report and "SamplerCustom after this node has CFG 7" in report
    assert "after this node" not in load(prompt=graph(), node_id="2")[-1]

    def state(**sampler):
        return node.IS_CHANGED(lora_name="digits.safetensors", preset="auto", prompt=graph(**sampler), node_id="2")

    assert state(cfg=7.0) != state() == state(noise_seed=5)  # a seed changes nothing here
    before = state()
    lora_file(embedded.loras / "digits.safetensors", seed=9, rank=3, metadata=DEMO)
    assert state() != before
    shutil.rmtree(embedded.loras)
    assert "there is no file" in state()


def test_wan_files_for_the_other_expert_are_told(embedded):
    name = "wan2.2_lightx2v_4steps_high_noise.safetensors"
    lora_file(embedded.loras / name, metadata=DEMO)
    prompt = {"1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan2.2_t2v_low_noise_14B_fp8.safetensors"}},
              "2": {"class_type": "FewStepLoadDistilledLoRA", "inputs": {"model": ["1", 0], "lora_name": name}}}
    assert "is made for the high_noise model of Wan 2.2, but a low_noise model is loaded" in load(name, prompt=prompt, node_id="2")[-1]


# settings without a file
def test_settings_of_a_distilled_model(embedded):
    model, clip, _ = checkpoint()
    same, sampler, sigmas, cfg, steps, _ = run("FewStepDistilledPreset", model=model, preset="dmd2-sdxl-1step")
    assert same is model and (cfg, steps, recipe_of(sampler).options["start"]) == (1.0, 1, "noise")
    assert float(sigmas[0]) == float(model.model.model_sampling.sigmas[399])
    seen = []
    network = model.model.diffusion_model
    handle = network.register_forward_hook(lambda module, args, out: seen.append((args[0].clone(), float(args[1][0]))))
    sampled(model, clip, sampler, sigmas, seed=3)
    handle.remove()
    ((x, t),) = seen
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(x, noise, rtol=1e-5, atol=1e-5)  # unit noise, at the trained step
    assert t == 399


def test_a_network_that_predicts_the_picture(embedded):
    model, clip, _ = checkpoint()
    changed, sampler, sigmas, *_, report = run("FewStepDistilledPreset", model=model, preset="sdxl-lightning-1step")
    outputs = []
    handle = model.model.diffusion_model.register_forward_hook(lambda module, args, out: outputs.append(out.clone()))
    result = sampled(changed, clip, sampler, sigmas)
    handle.remove()
    torch.testing.assert_close(result, outputs[0].float(), rtol=1e-5, atol=1e-5)
    assert "taken for the picture itself" in report and model.model.model_sampling.prediction == "eps"


# the stock loader and the command
def test_the_stock_loader_takes_plain_loras(embedded, caplog):
    from fewstep.host.executor import all_classes

    stock = all_classes()["LoraLoaderModelOnly"]
    model, *_ = checkpoint()
    (changed,) = stock().load_lora_model_only(model, "digits.safetensors", 0.5)
    ours = load(model=model, strength=0.5)[0]
    assert all(torch.equal(a, b) for a, b in zip(weights(changed).values(), weights(ours).values(), strict=True))
    assert stock().load_lora_model_only(model, "digits.safetensors", 0) == (model,)
    assert "digits.safetensors" in stock.INPUT_TYPES()["required"]["lora_name"][0]


def test_a_patched_model_has_another_fingerprint(embedded):
    model, *_ = checkpoint()
    changed = load(model=model)[0]
    assert embedded.weights(model)[1] is None and embedded.weights(changed)[1] != embedded.weights(load(model=model, strength=0.5)[0])[1]


def test_a_workflow_with_a_lora_runs_and_its_file_is_part_of_the_cache(embedded, tmp_path):
    from fewstep.host.executor import Executor

    prompt = {
        "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": "eps"}},
        "2": {"class_type": "FewStepLoadDistilledLoRA", "inputs": {
            "model": ["1", 0], "lora_name": "digits.safetensors", "strength": 1.0, "preset": "auto"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "3", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "SamplerCustom", "inputs": {
            "model": ["2", 0], "add_noise": True, "noise_seed": 1, "cfg": ["2", 4], "positive": ["3", 0], "negative": ["3", 0],
            "sampler": ["2", 2], "sigmas": ["2", 3], "latent_image": ["4", 0]}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "lora"}},
    }
    executor = Executor(embedded)
    first = executor.execute(prompt)
    assert first.ui["7"]["images"] and "modules used" in first.ui["2"]["text"][0]
    assert executor.execute(prompt).executed == []
    lora_file(embedded.loras / "digits.safetensors", seed=9, rank=3, metadata=DEMO)
    assert set(executor.execute(prompt).executed) == {"2", "5", "6", "7"}


def test_convert_lora_command(tmp_path):
    from fewstep.host.cli import app
    from typer.testing import CliRunner

    torch.save({"a.lora_down.weight": torch.ones(1)}, tmp_path / "x.pt")
    done = CliRunner().invoke(app, ["convert-lora", str(tmp_path / "x.pt")])
    assert done.exit_code == 0 and "1 tensors" in done.output and (tmp_path / "x.safetensors").exists()
    again = CliRunner().invoke(app, ["convert-lora", str(tmp_path / "x.pt")])
    assert again.exit_code == 2 and "exists already" in again.output
    assert CliRunner().invoke(app, ["convert-lora", str(tmp_path / "none.pt")]).exit_code == 2

"""LoRA files in a real ComfyUI's own process: every format on the host's own networks, kinds, hooks, settings, both hosts."""

import pytest

ROUNDING = 5e-7  # float32, relative to the largest weight
FAMILIES = {"sd15": 10, "sdxl": 10, "sd3": 9, "pixart": 9, "flux": 9, "z-image": 8, "qwen": 8, "wan": 9}


@pytest.mark.parametrize(("family", "count"), FAMILIES.items())
def test_every_format_gives_the_same_exact_weights(numbers, family, count):
    found = {name: case for name, case in numbers("adapters.formats").items() if name.split()[0] == family}
    assert len(found) == count
    for name, case in found.items():
        assert case["error"] < ROUNDING, name
        assert case["used"] and case["restored"], name
        slices = case["modules"] > case["changed"]  # several modules in one fused weight
        assert case["changed"] >= 0.7 * case["modules"] and (slices or case["changed"] == case["modules"]), name


@pytest.mark.parametrize(("name", "share"), [
    ("sd15 D1", 0.6), ("sdxl D1 A/B", 0.6), ("sd15 P", 0), ("flux P", 0), ("qwen P", 0), ("wan D2", 0), ("sd3 bare", 0), ("flux bare", 0),
])
def test_these_files_lose_keys_without_the_loader(numbers, name, share):
    """Why names are normalised: what the host's own loader would use of the same file."""
    case = numbers("adapters.formats")[name]
    assert case["host"] <= share * case["modules"]


@pytest.mark.parametrize("kind", ["lora without alpha", "locon", "loha", "lokr", "dora", "oft", "glora", "diff", "set"])
def test_other_kinds_go_through_the_hosts_weight_adapters(numbers, kind):
    case = numbers("adapters.kinds")[kind]
    assert case["host"] == 0 and case["changed"] == 1 and case.get("library", 0) < ROUNDING


def test_a_lora_and_a_full_change_of_one_layer_both_arrive(numbers):
    assert numbers("adapters.kinds")["both"] == {"weight": pytest.approx(1.0, abs=1e-6), "bias": pytest.approx(0.5, abs=1e-6)}


def test_control_files_in_their_makers_names_are_the_hosts_own(numbers):
    case = numbers("adapters.kinds")["control"]
    assert case["host"] == 0 and case["changed"] == 5 and case["input"][1] % 2 == 0  # two weights, two biases, a norm


def test_eight_bit_weights_are_patched_bit_for_bit_as_by_the_host(numbers):
    assert numbers("adapters.kinds").get("fp8", {"same": True})["same"]


@pytest.mark.parametrize("name", ["kohya", "diffusers", "generic", "PEFT"])
def test_text_encoder_parts_reach_their_own_encoder(numbers, name):
    case = numbers("adapters.text_encoders")[name]
    assert case["error"] < ROUNDING and case["changed"] == 4 and case["used"] and case["without"]


@pytest.mark.parametrize("case", ["hydra alone", "hydra after another", "routed"])
def test_hydra_and_routed_adapters_follow_their_formulas(numbers, case):
    """Hydra's W is the base weight, also while another LoRA is merged into it."""
    assert max(numbers("adapters.hydra_and_routed")[case].values()) < ROUNDING


@pytest.mark.parametrize("model", ["sd15", "flux", "demo"])
@pytest.mark.parametrize("kind", ["plain", "whole"])
def test_strengths_over_steps_are_the_strength_of_every_step(numbers, model, kind):
    case = numbers("loaders.over_steps")[f"{model} {kind}"]
    assert case["restored"] == 0 and case["effect"] > 100 * 5e-6
    runs = {name: value for name, value in case.items() if name[-1] in "12"}
    assert len(runs) == (6 if kind == "plain" else 4)
    assert max(runs.values()) < 5e-6, runs
    assert case["auto rebuilds"] == (kind == "whole") and case["rebuild rebuilds"]


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_the_demo_model_takes_loras_alike_in_both_hosts_and_by_the_stock_loader(numbers, form):
    case = numbers("loaders.both_hosts")[form]
    assert case["stock"] == 0 and case["embedded"] < ROUNDING and case["picture"] < 1e-5 and case["merged"] > 20
    assert case["sigmas"] and case["reports"] and case["fingerprint"] and case["additions"]


@pytest.mark.parametrize(("preset", "times"), [
    ("dmd2-sdxl", [999, 749, 499, 249]), ("lcm", [999, 759, 499, 259]), ("tdm-sd15", [999, 749, 500, 250]), ("sdxl-lightning", [999, 749, 499, 249]),
    ("dmd2-sdxl-1step", [399]), ("tdm-pixart", [899, 674, 449, 224]),
])
def test_trained_steps_are_entries_of_the_hosts_table(numbers, preset, times):
    case = numbers("loaders.settings")[preset]
    assert case["times"] == times and case["exact"] and case["sigmas"][-1] == 0


def test_flow_presets_are_the_hosts_own_shifted_levels(numbers):
    found = numbers("loaders.settings")
    assert found["qwen-lightning"]["sigmas"] == pytest.approx(found["simple"]["flow 3"], abs=1e-7)
    assert found["dmd2-sdxl"]["sigmas"] == found["simple"]["sd"]
    assert found["wan21-lightx2v"]["sigmas"] == pytest.approx([1, .9375, .83333, .625, 0], abs=5e-6)
    assert found["hyper-flux"]["sigmas"][0] == 1 and len(found["hyper-flux"]["sigmas"]) == 9


def test_one_step_models_see_unit_noise_and_x_0_models_their_output(numbers):
    found = numbers("loaders.settings")
    assert found["one step"]["input"] < 1e-6 and found["one step"]["sigma"] == pytest.approx(1.1605784)
    assert found["x_0"]["output"] < 1e-6


def test_full_size_networks_are_told_apart(numbers):
    assert all(name == family for name, family in numbers("loaders.full_size").items()) and len(numbers("loaders.full_size")) == 13


@pytest.mark.parametrize(("case", "message"), {
    "other base.safetensors": "made for FLUX.1, the loaded model is a U-Net of the Stable Diffusion kind",
    "other width.safetensors": "The file looks made for SDXL", "checkpoint.safetensors": "is not a LoRA but a model",
    "unknown.safetensors": "no key of a known adapter format", "text only.safetensors": "changes the text encoder only: connect a CLIP",
    "nan.safetensors": "holds NaN or infinity", "cut.safetensors": "not a readable safetensors file", "empty.safetensors": "is empty (0 bytes)",
    "old.pt": "fewstep convert-lora", "strength nan": "expected a finite number", "strength inf": "expected a finite number",
}.items())
def test_wrong_files_and_strengths_are_refused_by_name(numbers, case, message):
    said = numbers("loaders.refused")[case]
    assert said.startswith("AdapterError: ") and message in said


def test_strength_zero_leaves_the_hosts_model_alone(numbers):
    assert "strength is 0: the file is not applied" in numbers("loaders.refused")["strength 0"]


def test_the_lora_loaders_report_follows_the_workflow(server, comfy_folder):
    """Only the CFG of a later node changes: the loader runs again, since its report would be wrong; a new seed leaves it alone."""
    import torch
    from safetensors.torch import save_file

    folder = comfy_folder / "models" / "loras"
    header = {"fewstep.method": "tdm", "fewstep.timesteps": "[999, 749, 499, 249]", "fewstep.update": "ddim"}
    down, up = torch.full((1, 128), 0.01), torch.full((192, 1), 0.01)
    save_file({"diffusion_model.middle1.film.lora_down.weight": down, "diffusion_model.middle1.film.lora_up.weight": up}, folder / "few.safetensors", header)

    def report(cfg, seed):
        prompt = {
            "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": "eps"}},
            "2": {"class_type": "FewStepLoadDistilledLoRA", "inputs": {"model": ["1", 0], "lora_name": "few.safetensors", "strength": 1.0, "preset": "auto"}},
            "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "3", "clip": ["1", 1]}},
            "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "5": {"class_type": "SamplerCustom", "inputs": {
                "model": ["2", 0], "add_noise": True, "noise_seed": seed, "cfg": cfg, "positive": ["3", 0], "negative": ["3", 0],
                "sampler": ["2", 2], "sigmas": ["2", 3], "latent_image": ["4", 0]}},
            "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
            "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "few"}},
        }
        entry = server.run(prompt)
        assert len(server.images(entry)) == 1
        cached = next(data["nodes"] for name, data in entry["status"]["messages"] if name == "execution_cached")
        assert ("2" in cached) == ("2" not in entry["outputs"])  # what did not run says nothing
        return entry["outputs"].get("2", {}).get("text", [None])[0]

    text = report(1.0, 1)
    assert "1 of 1 modules used" in text and "confidence high" in text and "SamplerCustom" not in text
    assert report(1.0, 2) is None
    assert "WARNING: SamplerCustom after this node has CFG 7" in report(7.0, 2)


def test_the_shipped_loras_by_the_hosts_loader_and_by_the_packs(numbers):
    found = numbers("loaders.shipped")
    assert len(found) >= 6
    for name, case in found.items():
        assert case["mapped"] == case["applied"] == case["modules"] > 20, name
        assert case["weights"] < ROUNDING and case["x_0"] < 1e-4 < 1e-2 < case["without"], name
        assert case["sigmas"] == pytest.approx(case["planned"], rel=1e-6) and (case["cfg"], case["steps"]) == (1, 4), name
        assert case["sure"] and case["finite"] and case["warnings"] == 0, name
        assert len(case["other"]) == 2 and all(case["other"].values()), name

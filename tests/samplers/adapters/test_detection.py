"""Which method and base model a file is taken for, how sure, and that a guess changes no strength."""

import json

import pytest
import torch
from fewstep.samplers.adapters import AdapterFile, all_presets, looks_distilled
from fewstep.samplers.adapters.detect import Facts, detect
from fewstep.samplers.adapters.families import FAMILIES, compatible, family_of, model_widths
from fewstep.samplers.adapters.presets import shipped
from fewstep.samplers.adapters.settings import contradictions
from fewstep.samplers.errors import AdapterError

PRESETS = all_presets()


def facts(family, rank=64, alpha=8.0, targets="all"):
    return Facts(FAMILIES[family] if family else None, (rank,), alpha, targets)


def found(name, given, metadata=None):
    return detect(AdapterFile(name, {}, metadata or {}), given, PRESETS)


# file name, what its keys say, preset, steps, confidence
TABLE = [
    ("tdm_sd3_lora.safetensors", facts("sd3", alpha="none"), "tdm-sd3", 4, "high"),
    ("TDM-SD35.safetensors", facts("sd35-medium", alpha="none"), "tdm-sd35-medium", 4, "medium"),
    ("tdm_dreamshaper.safetensors", facts("sd15"), "tdm-sd15", 4, "medium"),
    ("tdm_pixart_512.safetensors", facts("pixart"), "tdm-pixart", 4, "medium"),
    ("TDM-CogVideoX-2B.safetensors", facts("cogvideox", alpha="none"), "tdm-cogvideox", 4, "medium"),
    ("hipa_sd21.safetensors", facts("sd2", 4), "hipa", 1, "medium"),
    ("dmd2_sdxl_4step_lora_fp16.safetensors", facts("sdxl"), "dmd2-sdxl", 4, "high"),
    ("dmd2_sdxl_1step_unet_fp16.safetensors", facts("sdxl"), "dmd2-sdxl-1step", 1, "medium"),
    ("pso_dmd2.safetensors", facts("sdxl", 16, "equal", "attention"), "pso-dmd2", 4, "high"),
    ("PSO-SDXL-Turbo.safetensors", facts("sdxl", 32, "equal", "attention"), "pso-turbo", 4, "high"),
    ("spo_sdxl_10ep_4k-data_lora_diffusers.safetensors", facts("sdxl", 64, "equal", "attention"), "spo-sdxl", 20, "high"),
    ("spo-sd-v1-5_4k-p_10ep.safetensors", facts("sd15", 4, "equal", "attention"), "spo-sd15", 20, "high"),
    ("lcm-lora-sdv1-5.safetensors", facts("sd15"), "lcm", 4, "high"),
    ("LCM_LoRA_SDXL_8steps.safetensors", facts("sdxl"), "lcm", 8, "high"),
    ("tcd-sdxl-lora.safetensors", facts("sdxl"), "tcd", 4, "high"),
    ("pcm_sdxl_smallcfg_2step_converted.safetensors", facts("sdxl"), "pcm-smallcfg", 2, "medium"),
    ("pcm_sd15_normalcfg_16step_converted.safetensors", facts("sd15"), "pcm-normalcfg", 16, "medium"),
    ("pcm_sdxl_lcmlike_lora_converted.safetensors", facts("sdxl"), "pcm-lcmlike", 4, "medium"),
    ("pcm_deterministic_2step_shift1.safetensors", facts("sd3", alpha="none"), "pcm-sd3-deterministic", 2, "medium"),
    ("pcm_stochastic_shift3_4step.safetensors", facts("sd3", alpha="none"), "pcm-sd3-stochastic", 4, "medium"),
    ("sdxl_lightning_8step_lora.safetensors", facts("sdxl"), "sdxl-lightning", 8, "high"),
    ("sdxl_lightning_1step_x0.safetensors", facts("sdxl"), "sdxl-lightning-1step", 1, "medium"),
    ("Hyper-SD15-1step-lora.safetensors", facts("sd15"), "hyper-sd-1step", 1, "medium"),
    ("Hyper-SDXL-8steps-lora.safetensors", facts("sdxl"), "hyper-sd", 8, "medium"),
    ("Hyper-SDXL-12steps-CFG-lora.safetensors", facts("sdxl"), "hyper-sd-cfg", 12, "medium"),
    ("Hyper-SDXL-1step-Unet.safetensors", facts("sdxl"), "hyper-sdxl-1step-unet", 1, "medium"),
    ("Hyper-FLUX.1-dev-8steps-lora.safetensors", facts("flux", alpha="none"), "hyper-flux", 8, "high"),
    ("Hyper-SD3-4steps-CFG-lora.safetensors", facts("sd3", alpha="none"), "hyper-sd3", 4, "high"),
    ("flash-sdxl.safetensors", facts("sdxl", 64, "equal", "attention"), "flash", 4, "high"),
    ("sd3.5_large_turbo_lora.safetensors", facts("sd35-large"), "sd35-turbo", 4, "medium"),
    ("flash-sd3.safetensors", facts("sd3"), "flash-sd3", 4, "medium"),
    ("sd_xl_turbo_1.0_lora.safetensors", facts("sdxl"), "sdxl-turbo", 4, "medium"),
    ("FLUX.1-Turbo-Alpha.safetensors", facts("flux"), "flux-turbo", 8, "medium"),
    ("Flux_2-Turbo-LoRA_comfyui.safetensors", facts("flux2"), "flux2-turbo", 8, "medium"),
    ("Qwen-Image-Lightning-8steps-V1.0.safetensors", facts("qwen-image"), "qwen-lightning", 8, "high"),
    ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors", facts("wan-14b-t2v"), "wan21-lightx2v", 4, "medium"),
    ("Wan21_CausVid_14B_T2V_lora_rank32.safetensors", facts("wan-14b-i2v"), "wan21-lightx2v", 4, "medium"),
    ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors", facts("wan-14b-t2v"), "wan22-lightning", 4, "medium"),
    ("ltx-2-19b-distilled-lora-384.safetensors", facts("ltx2"), "ltx2-distilled", 8, "medium"),
]


@pytest.mark.parametrize(("name", "given", "preset", "steps", "confidence"), TABLE, ids=[row[0] for row in TABLE])
def test_names_and_keys_that_agree(name, given, preset, steps, confidence):
    detection = found(name, given)
    assert detection.preset is not None, detection.reasons
    assert (detection.preset.id, detection.preset.steps, detection.confidence) == (preset, steps, confidence)
    assert any("its name says" in reason for reason in detection.reasons)


def test_every_preset_can_be_found_by_a_files_name():
    assert {row[2] for row in TABLE} == {preset.id for preset in PRESETS.values() if preset.names}


@pytest.mark.parametrize(("name", "given", "said"), [
    ("dmd2_sdxl_4step_lora.safetensors", facts("sd15"), "keys and widths belong to Stable Diffusion 1.5"),  # the name lies
    ("dmd2.safetensors", facts(None), "no known model"),
    ("dmd2_sdxl_4step_lora.safetensors", facts("sdxl", rank=16), "rank 16 where DMD2 has 64"),
    ("tdm_sd3.safetensors", facts("sd3", alpha=64.0), "alpha 64.0 where TDM has none"),
    ("lcm_sdxl.safetensors", facts("sdxl", targets="attention"), "changes attention layers"),
    ("pytorch_lora_weights.safetensors", facts("sdxl"), "keys and shapes fit dmd2-sdxl, lcm, tcd"),  # one target list, one rank
    ("adapter_model.safetensors", facts("sdxl", 64, "equal", "attention"), "spo-sdxl, flash"),
    ("my_style.safetensors", facts("hunyuan-video"), "neither header nor name"),
])
def test_doubts_choose_no_preset_and_say_why(name, given, said):
    detection = found(name, given)
    assert detection.preset is None and detection.confidence in ("low", "none")
    assert said in "; ".join(detection.reasons)


def test_the_header_goes_before_the_name():
    detection = found("pytorch_lora_weights.safetensors", facts("sdxl"), {"modelspec.title": "LCM LoRA SDXL 8 steps"})
    assert (detection.preset.id, detection.preset.steps, detection.confidence) == ("lcm", 8, "high")


def test_the_name_says_the_shift():
    given = facts("sd3", alpha="none")
    assert found("pcm_deterministic_2step_shift1.safetensors", given).preset.shift == 1
    assert found("pcm_stochastic_4step.safetensors", given).preset.shift == 3


def test_a_file_that_describes_itself():
    header = {"fewstep.method": "tdm", "fewstep.steps": "4", "fewstep.times": "[999, 749, 499, 249]", "fewstep.update": "ode", "fewstep.cfg": "1"}
    detection = found("digits.safetensors", facts("digits"), header)
    preset = detection.preset
    assert detection.confidence == "high" and (preset.steps, preset.cfg, preset.solver) == (4, 1.0, "dpm_solver_multistep")
    assert preset.grid == {"kind": "times", "times": {"4": [999, 749, 499, 249]}} and preset.trained_steps == (4,)
    short = {"fewstep.method": "dmd2", "steps": "2", "times": "[1.0, 0.5]", "update": "renoise", "cfg": "1.5", "shift": "3"}
    preset = found("x", facts("digits"), short).preset
    assert (preset.solver, preset.shift, preset.cfg_range) == ("consistency", 3.0, (1.0, 1.5)) and preset.grid["sigmas"] == [1.0, 0.5]
    with pytest.raises(AdapterError, match="settings cannot be read"):
        found("x", facts("digits"), {**header, "fewstep.update": "magic"})


# the loader's side
SD3 = {f"transformer_blocks.0.attn.{n}": (1536, 1536) for n in ("to_q", "to_k", "add_q_proj")}


def sd3_targets(make):
    weights = {f"diffusion_model.joint_blocks.0.{i}.weight": shape for i, shape in enumerate(SD3.values())}
    names = {f"transformer.{name}": key for name, key in zip(SD3, weights, strict=True)}
    return make.adapters.Targets(names, weights, lambda key: torch.zeros(weights[key]))


@pytest.mark.parametrize(("name", "choices", "factor", "warns"), [
    ("tdm_sd3_lora.safetensors", {}, 0.125, False),  # certain: the preset's scale stands in for the missing alpha
    ("flash_sd3.safetensors", {}, 1.0, True),  # medium: the sampler is used, the strength left alone
    ("flash_sd3.safetensors", {"preset": "flash-sd3"}, 0.125, False),  # the user's word
    ("flash_sd3.safetensors", {"scale": 0.25}, 0.25, False),
    ("pytorch_lora_weights.safetensors", {}, 1.0, False),
    ("tdm_sd3_lora.safetensors", {"preset": "none"}, 1.0, False),
])
def test_only_a_certain_match_scales(make, name, choices, factor, warns):
    tensors = make.tensors_of(make.pairs_for(SD3), lambda m: "transformer." + m, ".lora_A.weight", ".lora_B.weight")
    adapter = make.load(tensors, sd3_targets(make), name=name, **choices)
    assert float(adapter.patches[0].tensors["alpha"]) / 2 == factor
    assert any("its strength is left alone" in w for w in adapter.report.warnings) == warns
    assert f"confidence {adapter.detection.confidence}" in adapter.report.text


def test_without_a_preset_the_report_warns(make):
    tensors = make.tensors_of(make.pairs_for(SD3), lambda m: "transformer." + m, ".lora_A.weight", ".lora_B.weight")
    assert any("no preset was chosen" in w for w in make.load(tensors, sd3_targets(make)).report.warnings)
    with pytest.raises(AdapterError, match="no preset 'tdm-sd4'; did you mean 'tdm-sd3'"):
        make.load(tensors, sd3_targets(make), preset="tdm-sd4")


# base models
def widths(names, inside, out=None):
    return dict.fromkeys(names, (inside, out or inside))


@pytest.mark.parametrize(("given", "expected"), [
    ({"down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (768, 320)}, "sd15"),
    ({"input_blocks_1_1_transformer_blocks_0_attn2_to_v": (1024, 320)}, "sd2"),
    ({"input_blocks_4_1_transformer_blocks_0_attn2_to_k": (2048, 640)}, "sdxl"),
    ({"up_blocks_0_attentions_0_transformer_blocks_9_attn1_to_q": (1280, 1280)}, "sdxl"),
    ({"down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (1280, 640)}, "sdxl-refiner"),
    ({"mid_block_resnets_0_conv1": (1280, 1280)}, "unet"),
    ({"joint_blocks_0_x_block_attn_qkv": (1536, 4608)}, "sd3"), (widths(["transformer_blocks_0_attn_add_q_proj"], 1536), "sd3"),
    (widths(["transformer_blocks_0_attn_add_q_proj", "transformer_blocks_0_attn2_to_q"], 1536), "sd35-medium"),
    (widths(["transformer_blocks_0_attn_add_q_proj"], 2432), "sd35-large"), (widths(["joint_blocks_37_x_block_mlp_fc1"], 2432), "sd35-large"),
    (widths(["single_transformer_blocks_0_attn_to_q", "transformer_blocks_0_attn_to_q"], 3072), "flux"),
    ({"double_blocks_0_img_attn_qkv": (3072, 9216)}, "flux"), (widths(["single_transformer_blocks_47_attn_to_qkv_mlp_proj"], 6144), "flux2"),
    ({"double_blocks_19_img_attn_qkv": (3072, 9216)}, "hunyuan-video"),
    (widths(["transformer_blocks_59_attn_to_q"], 3072), "qwen-image"), ({"transformer_blocks_0_img_mlp_net_2": (12288, 3072)}, "qwen-image"),
    (widths(["blocks_0_self_attn_q", "blocks_39_cross_attn_k"], 5120), "wan-14b-t2v"),
    (widths(["blocks_0_self_attn_q", "blocks_0_cross_attn_k_img"], 5120), "wan-14b-i2v"), (widths(["blocks_0_self_attn_q"], 1536), "wan-1.3b"),
    (widths(["blocks_0_self_attn_q"], 3072), "wan-5b"), (widths(["transformer_blocks_27_attn1_to_q"], 1152), "pixart"),
    ({"blocks_0_cross_attn_q_linear": (1152, 1152)}, "pixart"), (widths(["transformer_blocks_29_attn1_to_q"], 1920), "cogvideox"),
    (widths(["transformer_blocks_0_attn1_to_q"], 2048), "ltx"), (widths(["transformer_blocks_0_audio_attn1_to_q"], 2048), "ltx2"),
    (widths(["layers_0_attention_to_q"], 3840), "z-image"), (widths(["layers_0_attention_qkv"], 2304, 6912), "lumina2"),
    ({"middle1_conv1": (96, 96)}, "digits"), ({"fc1": (4, 4)}, None), ({}, None),
])
def test_base_models_by_names_and_widths(given, expected):
    family = family_of(given)
    assert (family.id if family else None) == expected


def test_a_model_is_seen_as_its_files_are():
    shapes = {"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768), "diffusion_model.out.2.bias": (4,)}
    assert family_of(model_widths(shapes)).id == "sd15"
    schnell = {"diffusion_model.double_blocks.0.img_attn.qkv.weight": (9216, 3072), "diffusion_model.vector_in.in_layer.weight": (3072, 768),
               "diffusion_model.final_layer.linear.weight": (64, 3072)}
    assert family_of(model_widths(schnell)).id == "flux-schnell"
    assert family_of(model_widths({**schnell, "diffusion_model.guidance_in.in_layer.weight": (3072, 256)})).id == "flux"
    assert compatible(FAMILIES["flux"], FAMILIES["flux-schnell"]) and compatible(FAMILIES["unet"], FAMILIES["sdxl"])
    assert not compatible(FAMILIES["sd15"], FAMILIES["sdxl"]) and not compatible(FAMILIES["unet"], FAMILIES["flux"])


@pytest.mark.parametrize(("name", "expected"), [
    ("dreamshaperXL_lightningDPMSDE.safetensors", True), ("sd_xl_turbo_1.0.safetensors", True), ("flux1-schnell.safetensors", True),
    ("juggernautXL_v9_dmd2.safetensors", True), ("realvis_4step.safetensors", True), ("sd_xl_base_1.0.safetensors", False),
    ("v1-5-pruned-emaonly.safetensors", False), ("flux1-dev.safetensors", False), ("trained_2000steps.safetensors", False),
])
def test_names_of_distilled_models(name, expected):
    assert looks_distilled(name) == expected


# presets
def test_every_number_of_a_preset_has_a_source():
    for preset in shipped().values():
        wanted = {"cfg"} | ({"scale"} if preset.scale != 1 else set()) | ({"shift"} if preset.shift is not None else set())
        assert wanted <= set(preset.sources) and {"grid", "steps"} & set(preset.sources), preset.id
        assert all(s.split(" ")[0].rstrip(":;") in ("code", "card", "infer", "know", "paper", "unknown", "the") for s in preset.sources.values())


def test_a_users_file_adds_and_replaces(tmp_path):
    own = {"method": "Mine", "label": "mine", "families": ["sdxl"], "names": ["mine"], "steps": 3, "grid": {"kind": "trailing"}, "solver": "ddim",
           "cfg": 2, "cfg_range": [1, 3]}
    (tmp_path / "fewstep_presets.json").write_text(json.dumps({"format": 1, "presets": {"mine": own, "dmd2-sdxl": {**own, "steps": 6, "names": ["other"]}}}))
    presets = all_presets(tmp_path)
    assert presets["mine"].cfg == 2 and presets["dmd2-sdxl"].steps == 6 and len(presets) == len(PRESETS) + 1
    detection = detect(AdapterFile("mine_v2.safetensors", {}), facts("sdxl"), presets)
    assert detection.preset.id == "mine"


@pytest.mark.parametrize(("change", "message"), [
    ({"stpes": 4}, "unknown field 'stpes'; did you mean 'steps'"), ({"steps": 0}, "steps is 0"), ({"scale": -1}, "scale is -1"),
    ({"families": ["sdxxl"]}, "unknown family 'sdxxl'; did you mean 'sdxl'"), ({"solver": "eulr"}, "unknown solver 'eulr'"),
    ({"options": {"etta": 1}}, "has no option 'etta'"), ({"grid": {"kind": "karras"}}, "grid kind 'karras'"), ({"cfg": 9}, "cfg_range"),
    ({"names": ["("]}, "unterminated|missing"), ({"prediction": "v"}, "prediction is 'v'"),
])
def test_a_wrong_users_file_names_the_field(tmp_path, change, message):
    own = {"method": "Mine", "label": "mine", "steps": 3, "grid": {"kind": "trailing"}, "solver": "ddim", "cfg": 2, "cfg_range": [1, 3], **change}
    (tmp_path / "fewstep_presets.json").write_text(json.dumps({"format": 1, "presets": {"mine": own}}))
    with pytest.raises(AdapterError, match=message):
        all_presets(tmp_path)
    (tmp_path / "fewstep_presets.json").write_text("[]")
    with pytest.raises(AdapterError, match="must hold"):
        all_presets(tmp_path)


def test_wrong_steps_and_guidance_are_contradictions():
    (steps, cfg) = contradictions(PRESETS["dmd2-sdxl"], 20, 7.0)
    assert "20 steps: DMD2, SDXL, 4 steps is trained for 4" in steps and "made for 1 to 1.8" in cfg and "burns" in cfg
    assert contradictions(PRESETS["dmd2-sdxl"], 4, 1.0) == [] == contradictions(PRESETS["pcm-normalcfg"], 16, 7.5)
    assert "ignores the prompt" in contradictions(PRESETS["pcm-normalcfg"], None, 1.0)[0]

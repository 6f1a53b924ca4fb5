"""Routed adapters and strengths over steps, in the embedded host."""

import json

import pytest
import torch
from demo_loras import DEMO, checkpoint, load, lora_file, run, sampled, weights
from fewstep.nodes.host import HostError
from fewstep.samplers.errors import AdapterError, FewStepError, OptionError
from safetensors.torch import save_file


def routed(path):
    generator = torch.Generator().manual_seed(4)
    save_file({
        "diffusion_model.middle1.film.lora_a": torch.randn(3, 2, 64, 2, generator=generator),
        "diffusion_model.middle1.film.lora_b": torch.randn(3, 2, 2, 96, generator=generator),
        "module_logits": torch.randn(2, 6, generator=generator),
    }, path, {"task_names": json.dumps(["thin", "bold"])})


def test_a_task_of_a_routed_file(embedded):
    routed(embedded.loras / "routed.safetensors")
    model, *_ = checkpoint()
    results = [run("FewStepLoadRoutedAdapter", model=model, lora_name="routed.safetensors", task=task) for task in ("thin", "bold")]
    thin, bold = (weights(m)["middle1.film.weight"] for m, _ in results)
    assert (thin - bold).abs().max() > 1e-3 and "1 of 1 modules used" in results[0][1]
    with pytest.raises(AdapterError, match="thin, bold"):
        run("FewStepLoadRoutedAdapter", model=model, lora_name="routed.safetensors", task="none")
    with pytest.raises(AdapterError, match="use Load Routed Adapter"):
        load("routed.safetensors", model=model)


def over_steps(model, **widgets):
    sigmas = torch.cat([model.model.model_sampling.sigmas[[999, 749, 499, 249]], torch.zeros(1)])
    return run("FewStepLoRAOverSteps", model=model, lora_name="digits.safetensors", sigmas=sigmas, **widgets), sigmas


def test_a_constant_strength_over_steps_is_the_plain_load(embedded):
    model, clip, _ = checkpoint()
    (changed, _, _, report), sigmas = over_steps(model, strengths="0.5")
    plain, _, sampler, *_ = load(model=model, strength=0.5)
    a, b, base = (sampled(m, clip, sampler, sigmas) for m in (changed, plain, model))
    assert (a - b).abs().max() < 1e-4 < (a - base).abs().max() and "added while the network runs" in report
    assert torch.equal(sampled(model, clip, sampler, sigmas), base)  # the shared network is as it was


def test_strengths_fade_and_two_files_hand_over(embedded):
    model, clip, _ = checkpoint()
    (fading, *_), sigmas = over_steps(model, strengths="1, 1, 0, 0")
    seen = []

    def levels(m):
        patched = m.patched_model()
        for sigma in sigmas[:-1]:
            x = torch.ones(1, 4, 8, 8)
            seen.append(patched.apply_model(x, sigma.reshape(1), clip.encode_from_tokens_scheduled({"text": "3"})[0][0]))
        return [seen.pop(-k) for k in range(len(sigmas) - 1, 0, -1)]

    base, full = levels(model), levels(load(model=model)[0])
    for i, found in enumerate(levels(fading)):
        torch.testing.assert_close(found, (full if i < 2 else base)[i], rtol=1e-4, atol=1e-4)
    (both, *_, report), _ = over_steps(model, strengths="1, 1, 0, 0", second_lora="sub/plain.safetensors")
    second = levels(load("sub/plain.safetensors", model=model)[0])
    for i, found in enumerate(levels(both)):
        torch.testing.assert_close(found, (full if i < 2 else second)[i], rtol=1e-4, atol=1e-4)
    assert "strengths of sub/plain.safetensors: 0, 0, 1, 1" in report


def test_whole_weights_over_steps_need_the_real_host_and_prompts(embedded):
    save_file({"diffusion_model.middle1.film.diff": torch.ones(192, 128)}, embedded.loras / "digits.safetensors")
    model, clip, _ = checkpoint()
    with pytest.raises(OptionError, match="connect positive and negative"):
        over_steps(model)
    conds = [clip.encode_from_tokens_scheduled({"text": ""})] * 2
    with pytest.raises(HostError, match="only ComfyUI can rebuild"):
        over_steps(model, positive=conds[0], negative=conds[1])
    with pytest.raises(FewStepError, match="whole weights"):
        over_steps(model, method="additions")
    with pytest.raises(OptionError, match="method is 'both'"):
        over_steps(model, method="both")


def test_a_model_with_additions_has_another_fingerprint(embedded):
    """A calibration of the bare model, or of another fade, is not this model's."""
    from fewstep.nodes.calibration import fingerprint_of

    model, *_ = checkpoint()
    bare, *added = [fingerprint_of(m) for m in (
        model, *(over_steps(model, **w)[0][0] for w in (
            {"strengths": "1, 0"}, {"strengths": "1, 0.5"}, {"strengths": "1, 0", "second_lora": "sub/plain.safetensors"}, {"strengths": "1, 0"}))
    )]
    assert all("other LoRAs" in bare.difference(a) for a in added) and added[0].difference(added[3]) is None
    assert all("other LoRAs" in added[0].difference(a) for a in added[1:3])
    lora_file(embedded.loras / "digits.safetensors", seed=9, metadata=DEMO)
    assert "other LoRAs" in added[0].difference(fingerprint_of(over_steps(model, strengths="1, 0")[0][0]))

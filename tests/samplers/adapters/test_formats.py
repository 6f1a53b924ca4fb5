"""Every key format gives W + strength * alpha/rank * B A; the factor is found once; Hydra and routed adapters by their forward pass."""

import json
import math

import pytest
import torch
from fewstep.samplers import adapters
from fewstep.samplers.adapters.hydra import merged_branches
from fewstep.samplers.adapters.match import Routing, match
from fewstep.samplers.adapters.modules import Module, modules_of
from fewstep.samplers.adapters.names import formats_of, split_key, text_names
from fewstep.samplers.adapters.scale import Scales
from fewstep.samplers.errors import AdapterError

STRENGTH, ALPHA = 0.7, 3.0


def flat(name):
    return name.replace(".", "_")


def processor(name):
    return name.replace(".to_", ".processor.to_").removesuffix(".0") if "attn" in name else name


# format -> (module's name in it, endings of down and up)
FORMATS = {
    "K": (lambda d, own: "lora_unet_" + flat(d), ".lora_down.weight", ".lora_up.weight"),
    "K2": (lambda d, own: "lora_unet_" + flat(own), ".lora_down.weight", ".lora_up.weight"),
    "lycoris": (lambda d, own: "lycoris_" + flat(d), ".lora_down.weight", ".lora_up.weight"),
    "D0": (lambda d, own: "unet." + processor(d), "_lora.down.weight", "_lora.up.weight"),
    "D0 without unet": (lambda d, own: processor(d), "_lora.down.weight", "_lora.up.weight"),
    "D1": (lambda d, own: "unet." + d, ".lora.down.weight", ".lora.up.weight"),
    "D1 A/B": (lambda d, own: "unet." + d, ".lora_A.weight", ".lora_B.weight"),
    "bare": (lambda d, own: d, ".lora_A.weight", ".lora_B.weight"),
    "P": (lambda d, own: "base_model.model." + d, ".lora_A.weight", ".lora_B.weight"),
    "P default": (lambda d, own: "base_model.model." + d, ".lora_A.default.weight", ".lora_B.default.weight"),
    "P in unet": (lambda d, own: "unet.base_model.model." + d, ".lora_A.weight", ".lora_B.weight"),
    "G": (lambda d, own: "diffusion_model." + own, ".lora_A.weight", ".lora_B.weight"),
    "G linear layer": (lambda d, own: "model.diffusion_model." + own, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "A/B parameters": (lambda d, own: "diffusion_model." + own, ".lora_A", ".lora_B"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_merges_every_module_exactly(make, name):
    targets, weights = make.unet_targets()
    pairs = make.pairs_for({d: shape for d, (_, shape) in make.UNET.items()})
    base, down, up = FORMATS[name]
    tensors = make.tensors_of(pairs, lambda d: base(d, make.UNET[d][0]), down, up, ALPHA)
    adapter = make.load(tensors, targets, strength=STRENGTH)
    result = make.merged(adapter, weights, STRENGTH)
    for diffusers, (own, shape) in make.UNET.items():
        key = f"diffusion_model.{own}.weight"
        a, b = (t.double().flatten(1) for t in pairs[diffusers])
        expected = weights[key].double() + STRENGTH * ALPHA / make.RANK * (b @ a).reshape(shape)
        torch.testing.assert_close(result[key].double(), expected, rtol=1e-5, atol=1e-6)
        assert (result[key] - weights[key]).abs().max() > 0.1
    assert "5 of 5 modules used" in adapter.report.text and not [w for w in adapter.report.warnings if "module" in w]


@pytest.mark.parametrize(("key", "base", "role"), [
    ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "lora_te2_text_model_encoder_layers_0_mlp_fc1", "alpha"),
    ("diffusion_model.blocks.3.modulation.diff", "diffusion_model.blocks.3.modulation", "diff"),
    ("diffusion_model.head.head.diff_b", "diffusion_model.head.head", "diff_b"),
    ("a.b.lora_B.default.bias", "a.b", "up_bias"),
    ("a.b.lora_magnitude_vector.default.weight", "a.b", "dora_scale"),
    ("x.hada_w1_a", "x", "hada_w1_a"), ("x.lokr_w2_b", "x", "lokr_w2_b"), ("x.oft_blocks", "x", "oft_blocks"),
    ("blocks.0.mlp.hydra_mlp_par.down_proj.weight", "blocks.0.mlp.fc2", "hydra_par.down_proj.weight"),
    ("blocks.0.attn.hydra_proj_seq.up_proj.bias", "blocks.0.attn.proj", "hydra_seq.up_proj.bias"),
    ("a.q.hydra_seq.up_proj.weight", "a.q", "hydra_seq.up_proj.weight"),
    ("encoder.block.0.k.lora_a", "encoder.block.0.k", "lora_a"),
    ("encoder.block.0.selector.module_logits", "encoder.block.0", "module_logits"), ("module_logits", "", "module_logits"),
])
def test_keys_are_taken_apart(key, base, role):
    assert split_key(key)[:2] == (base, role)


def test_text_encoders_keep_to_their_own():
    names = set(text_names("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"))
    assert "lora_te2_text_model_encoder_layers_0_mlp_fc1" in names and not any("te1" in n or "te_" in n for n in names)
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1" in set(text_names("text_encoder.text_model.encoder.layers.0.mlp.fc1"))
    assert formats_of(["lora_te1_x", "unet.down_blocks.0.a"]) == ["text encoder: 1", "D1 (diffusers U-Net): 1"]


# alpha and rank
def linear(out=3, inside=4, bias=True):
    return torch.nn.Sequential(torch.nn.Linear(inside, out, bias=bias))


def one(rank, alpha=None, prefix="transformer."):
    tensors = {f"{prefix}0.lora_A.weight": torch.ones(rank, 4), f"{prefix}0.lora_B.weight": torch.ones(3, rank)}
    return tensors if alpha is None else {**tensors, f"{prefix}0.alpha": torch.tensor(float(alpha))}


def factor(make, tensors, **more):
    """The factor on up @ down that reaches the weight."""
    network = linear()
    adapter = make.load(tensors, adapters.targets_of(network), **more)
    (patch,) = adapter.patches
    change = adapters.merge(network[0].weight, [(patch, 1.0)]) - network[0].weight.detach()
    rank = patch.tensors["lora_down.weight"].shape[0]
    return float(change.mean()) / rank, adapter


PEFT = {"lora_alpha": 8, "r": 64}
HEADER = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer.r": 64})}


@pytest.mark.parametrize(("alpha", "metadata", "config", "expected", "source"), [
    (8, {}, {}, 0.125, "the file's alpha"),
    (8, HEADER, {"lora_alpha": 64, "r": 64}, 0.125, "the file's alpha"),
    (None, HEADER, {"lora_alpha": 64, "r": 64}, 0.125, "the header's lora_adapter_metadata"),
    (None, {"ss_network_alpha": "8", "ss_network_dim": "64"}, {}, 0.125, "the header's ss_network_alpha"),
    (None, {"lora_alpha": "8"}, {}, 1.0, "no alpha"),  # no complete pair
    (None, {"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 8, "text_encoder.r": 64})}, {}, 1.0, "no alpha"),
    (None, {}, PEFT, 0.125, "adapter_config.json"),
    (None, {}, {**PEFT, "use_rslora": True}, 1.0, "adapter_config.json"),  # 8/sqrt(64)
    (None, {}, {**PEFT, "alpha_pattern": {"0": 16}}, 0.25, "adapter_config.json"),
    (None, {}, {"lora_alpha": 8, "r": 32}, 1.0, "no alpha"),  # another file's: the rank is not this one's
    (None, {}, {}, 1.0, "no alpha"),
])
def test_the_factor_comes_from_the_first_source_that_has_it(make, alpha, metadata, config, expected, source):
    found, adapter = factor(make, one(64, alpha), metadata=metadata, config=config)
    assert found == pytest.approx(expected, rel=1e-6)
    assert source in adapter.report.text


@pytest.mark.parametrize(("alpha", "config", "expected"), [(None, {}, 0.125), (8, {}, 0.125), (None, PEFT, 0.125), (64, {}, 1.0)])
def test_a_preset_never_scales_what_has_an_alpha(make, alpha, config, expected):
    """0.125 * 0.125 = 1/64 is the mistake to be kept out."""
    found, adapter = factor(make, one(64, alpha), config=config, preset="tdm-sd3")
    assert found == pytest.approx(expected, rel=1e-6)
    assert f"strength 1: {expected:g} in all" in adapter.report.text


def test_the_users_scale_stands_in_for_the_presets(make):
    assert factor(make, one(64), preset="tdm-sd3", scale=0.5)[0] == pytest.approx(0.5)
    assert factor(make, one(64, 8), preset="tdm-sd3", scale=0.5)[0] == pytest.approx(0.125)


@pytest.mark.parametrize("metadata", [{"lora_adapter_metadata": "{"}, {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": "many"})}])
def test_a_broken_header_is_named(make, metadata):
    with pytest.raises(AdapterError, match="lora_adapter_metadata"):
        factor(make, one(4), metadata=metadata)


# other kinds
def test_full_changes_biases_and_replacements(make):
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    network.register_parameter("modulation", torch.nn.Parameter(torch.randn(1, 3)))
    new = {f"diffusion_model.{k}": torch.randn(s) for k, s in {
        "0.lora_down.weight": (2, 4), "0.lora_up.weight": (3, 2), "0.diff": (3, 4), "0.diff_b": (3,), "1.set_weight": (3,), "1.diff_b": (3,),
        "modulation.diff": (1, 3)}.items()}
    adapter = make.load(new, adapters.targets_of(network))
    weights = {f"diffusion_model.{k}": v for k, v in network.state_dict().items()}
    result = make.merged(adapter, weights, 0.5)
    get = {key.removeprefix("diffusion_model."): value for key, value in new.items()}
    old = network.state_dict()
    torch.testing.assert_close(
        result["diffusion_model.0.weight"], old["0.weight"] + 0.5 * (get["0.lora_up.weight"] @ get["0.lora_down.weight"] + get["0.diff"]))
    torch.testing.assert_close(result["diffusion_model.0.bias"], old["0.bias"] + 0.5 * get["0.diff_b"])
    torch.testing.assert_close(result["diffusion_model.1.weight"], get["1.set_weight"])
    torch.testing.assert_close(result["diffusion_model.modulation"], old["modulation"] + 0.5 * get["modulation.diff"])
    groups = adapters.rounds(adapter.patches)  # a host keeps one patch per target: the LoRA and the full change part
    assert len(groups) == 2 and sum(map(len, groups)) == len(adapter.patches) == 6
    for group in groups:
        assert len({patch.target for patch in group}) == len(group)


def test_a_bias_beside_lora_b_is_scaled_like_the_branch(make):
    network = linear()
    tensors = {**one(2, alpha=1), "transformer.0.lora_B.bias": torch.tensor([1.0, 2.0, 3.0])}
    patches = make.load(tensors, adapters.targets_of(network)).patches
    (bias,) = [p for p in patches if p.key.endswith("bias")]
    assert bias.tensors["diff"].tolist() == [0.5, 1.0, 1.5]


def test_loha_lokr_and_mid_weights(make):
    generator = torch.Generator().manual_seed(2)
    network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(6, 4), torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(6, 4))
    r = {k: torch.randn(s, generator=generator) for k, s in {
        "0.hada_w1_a": (4, 2), "0.hada_w1_b": (2, 6), "0.hada_w2_a": (4, 2), "0.hada_w2_b": (2, 6), "1.lokr_w1": (2, 3), "1.lokr_w2_a": (2, 1),
        "1.lokr_w2_b": (1, 2), "2.lora_down.weight": (2, 3, 1, 1), "2.lora_up.weight": (4, 2, 1, 1), "2.lora_mid.weight": (2, 2, 3, 3)}.items()}
    r |= {"0.alpha": torch.tensor(1.0), "1.alpha": torch.tensor(0.5), "2.alpha": torch.tensor(1.0)}
    adapter = make.load({f"diffusion_model.{k}": v for k, v in r.items()}, adapters.targets_of(network))
    change = {p.key.split(".")[1]: adapters.merge(torch.zeros(network[int(p.key.split('.')[1])].weight.shape), [(p, 1.0)]) for p in adapter.patches}
    torch.testing.assert_close(change["0"], 0.5 * (r["0.hada_w1_a"] @ r["0.hada_w1_b"]) * (r["0.hada_w2_a"] @ r["0.hada_w2_b"]))
    torch.testing.assert_close(change["1"], 0.5 * torch.kron(r["1.lokr_w1"], r["1.lokr_w2_a"] @ r["1.lokr_w2_b"]))
    x = torch.randn(1, 3, 5, 5, generator=generator)
    conv = torch.nn.functional.conv2d
    inner = conv(conv(x, r["2.lora_down.weight"]), r["2.lora_mid.weight"])
    torch.testing.assert_close(conv(x, change["2"]), 0.5 * conv(inner, r["2.lora_up.weight"]), rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="oft is merged by ComfyUI"):
        oft = make.load({"diffusion_model.3.oft_blocks": torch.zeros(2, 2, 2)}, adapters.targets_of(network))
        adapters.merge(network[3].weight, [(oft.patches[0], 1.0)])


def test_a_slice_of_a_fused_weight_changes_that_slice_alone(make):
    weight = torch.randn(9, 4)
    names = {f"transformer.attn.to_{c}": ("qkv.weight", (0, 3 * i, 3)) for i, c in enumerate("qkv")}
    targets = adapters.Targets(names, {"qkv.weight": (9, 4), "qkv.bias": (9,)}, lambda key: weight)
    tensors = make.tensors_of(make.pairs_for({"attn.to_q": (3, 4), "attn.to_v": (3, 4)}), lambda m: "transformer." + m)
    tensors["transformer.attn.to_v.diff_b"] = torch.ones(3)
    adapter = make.load(tensors, targets)
    result = adapters.merge(weight, [(p, 2.0) for p in adapter.patches if p.key == "qkv.weight"])
    for i, c in enumerate("qkv"):
        low = tensors.get(f"transformer.attn.to_{c}.lora_up.weight", torch.zeros(3, 2)) @ tensors.get(
            f"transformer.attn.to_{c}.lora_down.weight", torch.zeros(2, 4))
        torch.testing.assert_close(result[3 * i : 3 * i + 3], weight[3 * i : 3 * i + 3] + 2 * low)
    assert [p.target for p in adapter.patches if p.key == "qkv.bias"] == [("qkv.bias", (0, 6, 3))]


# Hydra
def hydra_file(generator, width=5, out=3, rank=2):
    shapes = {"par.down_proj.weight": (rank, width), "par.down_proj.bias": (rank,), "par.up_proj.weight": (out, rank), "par.up_proj.bias": (out,),
              "seq.down_proj.weight": (rank, out), "seq.down_proj.bias": (rank,), "seq.up_proj.weight": (out, rank), "seq.up_proj.bias": (out,)}
    return {f"hydra_{k}": torch.randn(s, generator=generator) for k, s in shapes.items()}


def test_hydra_is_its_forward_pass(make):
    generator = torch.Generator().manual_seed(3)
    network, s = torch.nn.Sequential(torch.nn.Linear(5, 3)), 0.6
    branch = hydra_file(generator)
    x = torch.randn(7, 5, generator=generator)
    y = network(x)

    def bottleneck(which, x):
        inner = torch.nn.functional.linear(x, branch[f"hydra_{which}.down_proj.weight"], branch[f"hydra_{which}.down_proj.bias"])
        return torch.nn.functional.linear(inner, branch[f"hydra_{which}.up_proj.weight"], branch[f"hydra_{which}.up_proj.bias"])

    expected = y + s * bottleneck("par", x) + s * bottleneck("seq", y)
    adapter = make.load({f"diffusion_model.0.{k}": v for k, v in branch.items()}, adapters.targets_of(network))
    result = make.merged(adapter, {f"diffusion_model.{k}": v for k, v in network.state_dict().items()}, s)
    got = torch.nn.functional.linear(x, result["diffusion_model.0.weight"], result["diffusion_model.0.bias"])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert adapter.patches[0].tensors["lora_down.weight"].shape == (4, 5)  # rank r_p + r_s


def test_hydra_without_a_bias_to_add_to(make):
    branch = {f"diffusion_model.0.{k}": v for k, v in hydra_file(torch.Generator().manual_seed(3)).items()}
    network = torch.nn.Sequential(torch.nn.Linear(5, 3, bias=False))
    with pytest.raises(AdapterError, match="no bias to add"):
        make.load(branch, adapters.targets_of(network))
    plain = {k: v for k, v in branch.items() if "bias" not in k}
    assert [p.kind for p in make.load(plain, adapters.targets_of(network)).patches] == ["lora"]
    del plain["diffusion_model.0.hydra_par.up_proj.weight"]
    with pytest.raises(AdapterError, match="only one of down_proj and up_proj"):
        make.load(plain, adapters.targets_of(network))
    with pytest.raises(AdapterError, match=r"expected \[r, 5\]"):
        merged_branches({"hydra_par.down_proj.weight": torch.zeros(2, 4), "hydra_par.up_proj.weight": torch.zeros(3, 2)}, torch.zeros(3, 5), None, "m")


# routed adapters
TASKS = ["cats", "dogs"]


def routed_file(generator, adapters_=3, heads=2, rank=2, inside=6, out=4, scope="diffusion_model.0"):
    return {
        "diffusion_model.0.lora_a": torch.randn(adapters_, heads, inside // heads, rank, generator=generator),
        "diffusion_model.0.lora_b": torch.randn(adapters_, rank, heads, out // heads, generator=generator),
        "diffusion_model.0.alpha": torch.tensor(1.0),
        f"{scope}.selector.module_logits".lstrip("."): torch.randn(2, heads * adapters_, generator=generator),
    }


def routed_forward(tensors, logits, task, x):
    """The published layer, head by head: weights, averaged A and B, two products."""
    a, b = tensors["diffusion_model.0.lora_a"], tensors["diffusion_model.0.lora_b"]
    s_count, heads, _, rank = a.shape
    gates = torch.sigmoid(logits[task]).reshape(heads, s_count)
    w = gates / (gates.sum(1, keepdim=True) + 1e-8)
    mean_a = torch.cat([sum(w[h, s] * a[s, h] for s in range(s_count)) for h in range(heads)])  # (in, r)
    mean_b = torch.cat([sum(w[h, s] * b[s, :, h] for s in range(s_count)) for h in range(heads)], dim=1)  # (r, out)
    return (x @ mean_a) @ mean_b * (1.0 / rank)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("scope", ["diffusion_model.0", "diffusion_model", ""])
def test_routed_adapters_are_their_forward_pass(make, heads, scope):
    generator = torch.Generator().manual_seed(4)
    network = torch.nn.Sequential(torch.nn.Linear(6, 4))
    tensors = routed_file(generator, heads=heads, scope=scope)
    logits = next(v for k, v in tensors.items() if k.endswith("module_logits"))
    x = torch.randn(5, 6, generator=generator)
    for task, said in ((1, "dogs"), (0, "0")):
        adapter = make.load(tensors, adapters.targets_of(network), metadata={"task_names": json.dumps(TASKS)}, routed=True, task=said)
        weight = adapters.merge(network[0].weight, [(adapter.patches[0], 0.9)])
        got = torch.nn.functional.linear(x, weight, network[0].bias)
        torch.testing.assert_close(got, network(x) + 0.9 * routed_forward(tensors, logits, task, x), rtol=1e-4, atol=1e-5)


def test_routing_that_averages_outputs_is_stacked_loras(make):
    generator = torch.Generator().manual_seed(4)
    network = torch.nn.Sequential(torch.nn.Linear(6, 4))
    tensors = routed_file(generator, heads=1)
    logits = tensors["diffusion_model.0.selector.module_logits"]
    w = torch.sigmoid(logits[1]) / (torch.sigmoid(logits[1]).sum() + 1e-8)
    a, b = tensors["diffusion_model.0.lora_a"][:, 0], tensors["diffusion_model.0.lora_b"][:, :, 0]
    expected = 0.5 * sum(w[s] * (a[s] @ b[s]).T for s in range(3))  # alpha/r = 1/2, and no cross terms
    after = {"task_names": json.dumps(TASKS), "merge_after": "true"}
    adapter = make.load(tensors, adapters.targets_of(network), metadata=after, routed=True, task="dogs")
    torch.testing.assert_close(adapters.merge(torch.zeros(4, 6), [(adapter.patches[0], 1.0)]), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(AdapterError, match="merge_after needs one head"):
        make.load(routed_file(generator), adapters.targets_of(network), metadata=after, routed=True, task="dogs")


def test_unknown_tasks_and_uniform_routing(make):
    generator = torch.Generator().manual_seed(4)
    network = torch.nn.Sequential(torch.nn.Linear(6, 4))
    tensors, meta = routed_file(generator), {"task_names": json.dumps(TASKS)}
    with pytest.raises(AdapterError, match="cats, dogs; did you mean 'dogs'"):
        make.load(tensors, adapters.targets_of(network), metadata=meta, routed=True, task="dog")
    uniform = make.load(tensors, adapters.targets_of(network), metadata=meta, routed=True, task="dog", allow_unknown_task=True)
    flat_logits = {**tensors, "diffusion_model.0.selector.module_logits": torch.zeros(2, 6)}
    same = make.load(flat_logits, adapters.targets_of(network), metadata=meta, routed=True, task="cats")
    a, b = (adapters.merge(torch.zeros(4, 6), [(x.patches[0], 1.0)]) for x in (uniform, same))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"lora_a": (3, 2, 3, 2), "lora_b": (2, 2, 2, 2)}, "same S, q and r"), ({"lora_a": (3, 4, 1, 2), "lora_b": (3, 2, 4, 1)}, "do not divide"),
    ({"selector.module_logits": (2, 5)}, "routing logits"), ({"lora_a": (3, 2, 2, 2)}, "made for 4 inputs"),
])
def test_routed_files_that_do_not_fit_are_named(make, changes, message):
    network = torch.nn.Sequential(torch.nn.Linear(6, 4))
    tensors = routed_file(torch.Generator().manual_seed(4))
    tensors |= {f"diffusion_model.0.{k}": torch.ones(s) for k, s in changes.items()}
    with pytest.raises(AdapterError, match=message):
        make.load(tensors, adapters.targets_of(network), metadata={"task_names": json.dumps(TASKS)}, routed=True, task="cats")


def test_a_routed_file_needs_its_own_loader_and_others_have_no_task(make):
    network = torch.nn.Sequential(torch.nn.Linear(6, 4))
    with pytest.raises(AdapterError, match="use Load Routed Adapter"):
        make.load(routed_file(torch.Generator()), adapters.targets_of(network))
    with pytest.raises(AdapterError, match="leave it empty"):
        make.load(one(2), adapters.targets_of(linear()), routed=True, task="cats")


def test_ranks_without_alpha_tensors_are_seen_as_they_are():
    module = Module("m", {"lora_down.weight": torch.zeros(4, 8), "lora_up.weight": torch.zeros(8, 4)})
    scale = Scales(adapters.AdapterFile("f", {}, {"lora_alpha": "2", "r": "4"})).of(module)
    assert (scale.factor, scale.rank, scale.alpha) == (0.5, 4, 2.0)
    assert math.isclose(Scales(adapters.AdapterFile("f", {}), 0.125).of(module).factor, 0.125)


def test_the_same_module_under_two_names_is_an_error(make):
    network = linear()
    tensors = {**one(2), **one(2, prefix="diffusion_model.")}
    with pytest.raises(AdapterError, match="names one module twice"):
        match(modules_of(adapters.AdapterFile("f", tensors)).all, adapters.targets_of(network), Scales(adapters.AdapterFile("f", {})), Routing({}))

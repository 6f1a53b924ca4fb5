"""Files that are wrong, or lose keys: every case has its own clear behaviour, and every key is accounted for."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fewstep.samplers import adapters
from fewstep.samplers.adapters.convert import convert_pickle
from fewstep.samplers.adapters.load import unscaled_fp8, warn_fp8
from fewstep.samplers.errors import AdapterError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PREFIX = "diffusion_model."


def network(layers=4):
    return torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(layers)))


def lora(layers, start=0, out=4):
    return {
        f"{PREFIX}{i}.{role}.weight": torch.ones(shape) for i in range(start, start + layers)
        for role, shape in (("lora_A", (2, 4)), ("lora_B", (out, 2)))
    }


def load(make, tensors, layers=4, **more):
    return make.load(tensors, adapters.targets_of(network(layers)), **more)


# files
def test_a_file_is_opened_with_its_header_and_its_neighbour(tmp_path):
    save_file(lora(1), tmp_path / "a.safetensors", {"ss_network_dim": "2"})
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1, "r": 2}')
    file = adapters.open_adapter(tmp_path / "a.safetensors")
    assert set(file.tensors) == set(lora(1)) and file.metadata["ss_network_dim"] == "2" and file.config["lora_alpha"] == 1
    before = adapters.fingerprint(tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16, "r": 2}')
    assert adapters.fingerprint(tmp_path / "a.safetensors") != before
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="adapter_config.json cannot be read"):
        adapters.open_adapter(tmp_path / "a.safetensors")


def broken(path, kind):
    whole = path.with_name("whole.safetensors")
    save_file(lora(2), whole)
    content = whole.read_bytes()
    path.write_bytes({
        "empty": b"", "truncated": content[: len(content) // 2], "header cut": content[:20], "text": b"<!DOCTYPE html><html></html>",
        "zip": b"PK\x03\x04" + content, "pickle": pickle.dumps({"a": 1}, protocol=2), "no tensors": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
    }[kind])


@pytest.mark.parametrize(("kind", "message"), [
    ("empty", r"is empty \(0 bytes\)"), ("truncated", "not a readable safetensors file"), ("header cut", "header says more than"),
    ("text", "web page"), ("zip", "is a pickle.*fewstep convert-lora"), ("pickle", "is a pickle.*fewstep convert-lora"),
    ("no tensors", "holds no tensors"),
])
def test_a_broken_file_says_what_is_wrong(tmp_path, kind, message):
    broken(tmp_path / "bad.safetensors", kind)
    with pytest.raises(AdapterError, match=message) as error:
        adapters.open_adapter(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(error.value)


@pytest.mark.parametrize("length", [0x4B50, 0x0280])  # a header's length that begins like a zip or a pickle
def test_a_header_of_any_length_is_no_pickle(tmp_path, length):
    save_file(lora(1), tmp_path / "a.safetensors", {"x": "y"})
    content = (tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip().ljust(length)
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + header + content[8 + size :])
    assert set(adapters.open_adapter(tmp_path / "a.safetensors").tensors) == set(lora(1))


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt", ".PTH"])
def test_a_pickle_is_refused_by_its_ending_without_being_read(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(b"anything")
    with pytest.raises(AdapterError, match="fewstep convert-lora"):
        adapters.open_adapter(tmp_path / f"a{ending}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AdapterError, match="there is no adapter file gone.safetensors"):
        adapters.open_adapter(tmp_path / "gone.safetensors")


# what is not an adapter
def test_a_checkpoint_is_sent_to_its_loader(make):
    with pytest.raises(AdapterError, match="is not a LoRA but a model.*Load Checkpoint"):
        load(make, {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2), "model.diffusion_model.input_blocks.0.0.bias": torch.ones(2)})


def test_an_unknown_format_is_said_to_be_one(make):
    with pytest.raises(AdapterError, match="no key of a known adapter format.*emb.string_to_param"):
        load(make, {"emb.string_to_param": torch.ones(2)})


def test_two_adapters_in_one_file(make):
    tensors = {f"base_model.model.0.lora_A.{name}.weight": torch.ones(2, 4) for name in ("first", "second")}
    with pytest.raises(AdapterError, match="several adapters \\(first, second\\)"):
        load(make, tensors)


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, True, "1"])
def test_a_strength_that_is_no_number(make, strength):
    with pytest.raises(AdapterError, match="expected a finite number"):
        load(make, lora(4), strength=strength)


def test_strength_zero_is_said(make):
    assert "strength is 0" in load(make, lora(4), strength=0.0).report.text


# nothing is lost without a word
def test_no_match_is_an_error_that_names_the_format_and_the_base_model(make):
    tensors = make.tensors_of(
        make.pairs_for({d: shape for d, (_, shape) in make.UNET.items()}), lambda d: "lora_unet_" + d.replace(".", "_"), alpha=1)
    with pytest.raises(AdapterError, match="none of its 5 modules fits.*made for Stable Diffusion 1.5.*K \\(kohya\\): 5"):
        load(make, tensors)


def test_too_few_matches_are_an_error_unless_allowed(make):
    tensors = lora(10)
    with pytest.raises(AdapterError, match=r"only 4 of 10 modules.*diffusion_model.4, .*diffusion_model.8 and 1 more.*allow_partial"):
        load(make, tensors)
    adapter = load(make, tensors, allow_partial=True)
    assert len(adapter.patches) == 4 and any("6 modules without a counterpart" in w for w in adapter.report.warnings)


def test_one_module_in_twenty_may_be_missing(make):
    assert any("1 modules without" in w for w in load(make, lora(20), layers=19).report.warnings)
    with pytest.raises(AdapterError, match="only 18 of 20"):
        load(make, lora(20), layers=18)


def test_half_a_pair_wrong_sizes_and_unknown_keys_are_counted(make):
    tensors = lora(20)
    del tensors[f"{PREFIX}3.lora_B.weight"]
    tensors["something.else"] = torch.ones(1)
    report = load(make, tensors, layers=20).report
    assert any("1 modules incomplete: diffusion_model.3 (no lora_up.weight)" in w for w in report.warnings)
    assert any("1 keys belong to no known format and are not used: something.else" in w for w in report.warnings)
    assert "19 of 20 modules used" in report.text and "40 tensors in 20 modules" in report.text
    with pytest.raises(AdapterError, match=r"none of its 4 modules.*made for another size"):
        load(make, lora(4, out=5))


def test_nan_is_an_error_and_zeros_are_told(make):
    tensors = lora(4)
    tensors[f"{PREFIX}2.lora_A.weight"][0, 0] = math.nan
    with pytest.raises(AdapterError, match="NaN or infinity in diffusion_model.2.lora_A.weight"):
        load(make, tensors)
    tensors = {k: v * ("lora_A" in k) for k, v in lora(4).items()}
    assert any("every up weight is zero" in w for w in load(make, tensors).report.warnings)
    tensors[f"{PREFIX}0.lora_B.weight"] += 1
    report = load(make, tensors).report
    assert "3 modules have zero up weights" in report.text and not any("zero" in w for w in report.warnings)


def test_half_precision_and_eight_bits_are_taken(make):
    for dtype in (torch.float16, torch.bfloat16, getattr(torch, "float8_e4m3fn", torch.float16)):
        tensors = {k: v.to(dtype) for k, v in lora(4).items()}
        adapter = load(make, tensors)
        torch.testing.assert_close(adapters.merge(torch.zeros(4, 4), [(adapter.patches[0], 1.0)]), torch.full((4, 4), 2.0))


# base models
def test_the_wrong_base_model_is_named_on_both_sides(make):
    targets, _ = make.unet_targets(context=2048)
    tensors = make.tensors_of(
        make.pairs_for({d: shape for d, (_, shape) in make.UNET.items()}), lambda d: "lora_unet_" + d.replace(".", "_"), alpha=1)
    with pytest.raises(AdapterError, match="made for Stable Diffusion 1.5, the loaded model is SDXL: load Stable Diffusion 1.5"):
        make.load(tensors, targets)
    adapter = make.load(tensors, targets, allow_partial=True)
    assert len(adapter.patches) == 4 and any("of another size" in w for w in adapter.report.warnings)


# text encoders
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def text_file():
    return {f"{TEXT}.lora_down.weight": torch.ones(2, 4), f"{TEXT}.lora_up.weight": torch.ones(4, 2), f"{TEXT}.alpha": torch.tensor(2.0)}


def text_targets():
    return adapters.Targets({TEXT: "clip_l.x.weight"}, {"clip_l.x.weight": (4, 4)}, lambda key: torch.zeros(4, 4))


def test_a_text_encoder_part_is_used_where_a_clip_is_connected(make):
    both = {**lora(4), **text_file()}
    alone = load(make, both)
    assert not alone.text_patches and "1 modules are in the file and not used, as no CLIP" in alone.report.text
    assert not any("text" in w for w in alone.report.warnings)
    with_clip = load(make, both, text=text_targets())
    assert [p.target for p in with_clip.text_patches] == ["clip_l.x.weight"] and "text encoder: 1 of 1" in with_clip.report.text


def test_a_file_for_the_text_encoder_only(make):
    with pytest.raises(AdapterError, match="changes the text encoder only: connect a CLIP"):
        load(make, text_file())
    adapter = load(make, text_file(), text=text_targets())
    assert adapter.text_patches and not adapter.patches
    assert any("cannot make a model sample in few steps" in w for w in adapter.report.warnings)
    nowhere = adapters.Targets({}, {}, lambda key: torch.zeros(1))
    with pytest.raises(AdapterError, match="none of its 1 text encoder modules"):
        load(make, text_file(), text=nowhere)


# 8-bit bases
@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no 8-bit floats")
def test_plain_eight_bit_bases_are_warned_of():
    plain = adapters.Targets({}, {"a.weight": (1,)}, torch.zeros, {"a.weight": torch.float8_e4m3fn})
    scaled = adapters.Targets({}, {"a.weight": (1,), "a.scale_weight": (1,)}, torch.zeros, {"a.weight": torch.float8_e4m3fn})
    assert unscaled_fp8(plain) and not unscaled_fp8(scaled)
    from fewstep.samplers.adapters.families import FAMILIES

    for family, target, expected in (("qwen-image", plain, 1), ("wan-14b-t2v", plain, 1), ("qwen-image", scaled, 0), ("sdxl", plain, 0)):
        report = adapters.Report()
        warn_fp8(report, FAMILIES[family], target)
        assert len(report.warnings) == expected


# memory
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_large_file_costs_little_memory(tmp_path):
    """Highest private memory while a 2 GB file (mostly holes) is opened, checked and matched; its pages stay the file's own."""
    code = """if True:
        import json, re, sys, threading, importlib.util as u
        from pathlib import Path
        root, folder = sys.argv[1], Path(sys.argv[2])
        spec = u.spec_from_file_location("fewstep", root + "/__init__.py", submodule_search_locations=[root])
        m = u.module_from_spec(spec); sys.modules["fewstep"] = m; spec.loader.exec_module(m)
        import torch
        from fewstep.samplers import adapters
        layers, width, rank = 256, 32768, 64
        header, place = {}, 0
        for i in range(layers):
            for role, shape in (("lora_A", [rank, width]), ("lora_B", [width, rank])):
                size = shape[0] * shape[1] * 2
                header[f"diffusion_model.{i}.{role}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place + size]}
                place += size
        text = json.dumps(header).encode()
        path = folder / "big.safetensors"
        with path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + place)
            for entry in header.values():  # holes elsewhere; no tensor is all zero
                out.seek(8 + len(text) + entry["data_offsets"][0])
                out.write(bytes([0x80, 0x3F]))
        names = {f"diffusion_model.{i}": f"diffusion_model.{i}.weight" for i in range(layers)}
        targets = adapters.Targets(names, {f"diffusion_model.{i}.weight": (width, width) for i in range(layers)}, torch.zeros)
        def private():
            return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
        before, done, seen = private(), threading.Event(), []
        def watch():
            while not done.wait(0.005):
                seen.append(private())
        watcher = threading.Thread(target=watch)
        watcher.start()
        adapter = adapters.load_adapter(adapters.open_adapter(path), targets, {})
        done.set()
        watcher.join()
        print(place / 2**20, max(seen) - before, len(adapter.patches))
    """
    import fewstep

    root = str(Path(fewstep.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, root, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, growth, patches = map(float, done.stdout.split())
    assert size == 2048 and patches == 256 and growth < 40


# conversion
def test_a_pickle_becomes_safetensors(tmp_path):
    shared = torch.randn(4, 4)
    tensors = {**lora(1), "a": shared, "b": shared[:, :2], "c": shared.t()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "x.pt")
    done = convert_pickle(tmp_path / "x.pt")
    assert done.path == tmp_path / "x.safetensors" and done.tensors == len(tensors) and done.left_out == ("epoch",)
    found = load_file(done.path)
    assert set(found) == set(tensors) and all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert list(tmp_path.glob("*.part")) == []
    with safe_open(done.path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(AdapterError, match="exists already"):
        convert_pickle(tmp_path / "x.pt")
    torch.save({"unet": tensors}, tmp_path / "y.bin")
    assert convert_pickle(tmp_path / "y.bin", tmp_path / "z.safetensors").tensors == len(tensors)


class Evil:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_pickle_with_code_or_objects_is_refused(tmp_path, capsys):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": {"a": Evil()}}))
    torch.save({"a": torch.ones(1), "b": 3}, tmp_path / "mixed.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"a": 1, "b": 2}, tmp_path / "none.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 no archive")
    for name, message in {
        "evil": "cannot be read as tensors alone", "mixed": r"1 entries that are no tensors, such as 'b' \(int\)", "list": "holds list",
        "none": "2 entries that are no tensors", "broken": "cannot be read", "missing": "there is no file",
    }.items():
        with pytest.raises(AdapterError, match=message):
            convert_pickle(tmp_path / f"{name}.pt")
    assert "never run" not in capsys.readouterr().out
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.part"))
    with pytest.raises(AdapterError, match=r"must end in \.safetensors"):
        convert_pickle(tmp_path / "mixed.pt", tmp_path / "out.bin")

"""Calibration files, partial states and fingerprints: what is read back, and what is refused."""

import errno
import os

import pytest
import torch
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.fingerprint import Fingerprint
from fewstep.samplers.calibration.job import Job
from fewstep.samplers.errors import CalibrationError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folders", [tmp_path])
    return tmp_path


def weights(seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return {f"layer{i}.weight": scale * torch.randn(16, 8 + i, generator=g) for i in range(60)}


def calibration(purpose="ratios", **meta):
    return store.Calibration(purpose, {"ratios": torch.tensor([1.0, 1.0, 0.9])}, {"steps": 3, **meta}, Fingerprint.of(weights()))


def test_round_trip(folder):
    ref = store.save(calibration(), folder / "sd" / "a.safetensors")
    found = store.load("sd/" + ref, "ratios")
    assert found.tensors["ratios"].tolist() == calibration().tensors["ratios"].tolist()
    assert found.meta == {"steps": 3} and found.model == Fingerprint.of(weights())
    assert store.list_files("ratios") == ["sd/a.safetensors"] and store.list_files("plan") == []
    assert [p.name for p in folder.rglob("*.part")] == []


def test_a_reference_pins_the_content(folder):
    ref = store.save(calibration(), folder / "a.safetensors")
    store.save(calibration(note="other"), folder / "a.safetensors")
    with pytest.raises(CalibrationError, match="has changed since"):
        store.load(ref, "ratios")
    assert store.load("a.safetensors", "ratios").meta["note"] == "other"


def test_refusals(folder):
    store.save(calibration(), folder / "a.safetensors")
    with pytest.raises(CalibrationError, match="holds ratios, but statistics"):
        store.load("a.safetensors", "statistics")
    with pytest.raises(CalibrationError, match=r"did you mean 'a.safetensors'"):
        store.load("aa.safetensors", "ratios")
    for name in ("../a.safetensors", "/etc/passwd", "", "c:\\a"):
        with pytest.raises(CalibrationError, match="not a name inside"):
            store.find(name)
    (folder / "p.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(CalibrationError, match="is a pickle"):
        store.read(folder / "p.pt")
    whole = (folder / "a.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-5])
    with pytest.raises(CalibrationError, match="damaged"):
        store.read(folder / "cut.safetensors")
    with pytest.raises(CalibrationError, match=r"saved as \.safetensors"):
        store.save(calibration(), folder / "a.pt")
    with pytest.raises(CalibrationError, match="NaN"):
        store.Calibration("ratios", {"ratios": torch.tensor([1.0, float("nan")])})


def test_a_full_disk_leaves_nothing(folder, monkeypatch):
    store.save(calibration(), folder / "a.safetensors")
    before = (folder / "a.safetensors").read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(CalibrationError, match="No space left"):
        store.save(calibration(note="new"), folder / "a.safetensors")
    assert [p.name for p in folder.iterdir()] == ["a.safetensors"] and (folder / "a.safetensors").read_bytes() == before


def test_fingerprints_survive_rounding_and_tell_models_apart():
    own = Fingerprint.of(weights())
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        assert own.difference(Fingerprint.of({n: w.to(dtype) for n, w in weights().items()})) is None, dtype
    assert "weights differ" in own.difference(Fingerprint.of(weights(seed=1)))
    assert "names or shapes" in own.difference(Fingerprint.of({f"x.{n}": w for n, w in weights().items()}))
    assert "LoRAs" in own.difference(Fingerprint.of(weights(), patches=[["a.lora", 0.5]]))
    with pytest.raises(CalibrationError, match="another model"):
        calibration().check_model(Fingerprint.of(weights(seed=1)), "a.safetensors")
    calibration().check_model(own)


def work(job, stop=None):
    """Sums random draws, one stream position per piece."""
    state = job.resume() or {"sum": torch.zeros((), dtype=torch.float64), "next": torch.tensor(0)}
    total, start = state["sum"].clone(), int(state["next"])
    with job:
        for i in range(start, 7):
            if stop == i:
                raise KeyboardInterrupt
            total += torch.rand((), generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            job.advance(2, {"sum": total, "next": torch.tensor(i + 1)}, {"sum": [float(total)]})
    return total


def test_an_interrupted_job_goes_on_to_the_same_bits(tmp_path):
    whole = work(Job(14, {"seed": 0}))
    partial, seen = tmp_path / "x.partial", []
    with pytest.raises(KeyboardInterrupt):
        work(Job(14, {"seed": 0}, partial=partial), stop=4)
    other = Job(14, {"seed": 1}, partial=partial)
    assert other.resume() is None
    job = Job(14, {"seed": 0}, partial=partial, report=lambda done, total, curves: seen.append((done, total)))
    assert torch.equal(work(job), whole) and seen == [(10, 14), (12, 14), (14, 14)]
    job.finish()
    assert list(tmp_path.iterdir()) == []
    partial.write_bytes(b"nonsense")
    with pytest.raises(CalibrationError, match="damaged"):
        Job(14, {"seed": 0}, partial=partial).resume()


def test_a_failed_write_does_not_hide_an_interruption(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fewstep.samplers.plan_io.write_atomically", full)
    with pytest.raises(KeyboardInterrupt):
        work(Job(14, {"seed": 0}, partial=tmp_path / "x.partial"), stop=4)
    with pytest.raises(CalibrationError, match="could not be written"):
        work(Job(14, {"seed": 0}, partial=tmp_path / "x.partial"))

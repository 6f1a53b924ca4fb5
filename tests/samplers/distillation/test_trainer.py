"""The loop: resumption to the same bits, interruption, failures, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from fewstep.samplers import frames
from fewstep.samplers.distillation import DMD2, TDM, Context, LowRank, Optimiser, TimeTable, Trainer, TrainSettings, switched
from fewstep.samplers.distillation.objective import Draws
from fewstep.samplers.distillation.optimiser import Updater
from fewstep.samplers.errors import Interrupted, OptionError, TrainingError
from safetensors.torch import save_file
from torch import nn

SETTINGS = TrainSettings(
    8, 5, (3, 2, 2), 4,
    {"student": Optimiser(1e-2, (0.0, 0.95), clip=1.0, warmup=2, decay="cosine"), "critic": Optimiser(1e-2)}, seed=7,
    notes={"rank": 2},
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.label = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x, t, prompts):
        wanted = nn.functional.one_hot(prompts.clamp(min=0), 4).float() * (prompts >= 0)[:, None]
        return self.mix(x) * (t / 1000).reshape(-1, 1, 1, 1) + self.label(wanted)[:, :, None, None]


def base():
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def make(objective=None, settings=SETTINGS, critic=True, net=None):
    """Student and critic are two adapters on one network."""
    net = net or base()
    student, fake = LowRank(net, 2, seed=1), LowRank(net, 3, seed=2)
    context = Context(TimeTable.of(frames.flow()), net, switched(net, student), switched(net, fake) if critic else None, Draws(settings.seed))
    return Trainer(objective or TDM(2, 2.0), context, {"student": student.parameters, "critic": fake.parameters}, settings)


def everything(trainer):
    return {
        **{f"{n}/{k}": v for n, u in trainer._updaters.items() for k, v in u.state().items()},
        **{f"average/{k}": v for k, v in trainer.average.items()},
    }


@pytest.mark.parametrize("objective", [TDM(2, 2.0), DMD2((999, 499), 2.0, ratio=3)])
@pytest.mark.parametrize("stop", [1, 5])
def test_resumed_run_equals_an_unbroken_one(tmp_path, objective, stop):
    whole = make(objective)
    start = {k: v.clone() for k, v in everything(whole).items()}
    whole.run()
    path = tmp_path / "run.safetensors"
    first = make(objective)
    with pytest.raises(Interrupted, match=f"stopped after {stop} iterations; saved in run.safetensors"):
        first.run(checkpoint=path, should_stop=lambda: first.step == stop)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    second = make(objective)
    second.context.draws.noise(torch.empty(3))  # the generators' states come from the file
    second.resume(path)
    assert second.step == stop
    second.run(checkpoint=path)
    assert whole.history == second.history or all(
        a == b or (a != a and b != b) for x, y in zip(whole.history, second.history, strict=True) for a, b in zip(x, y, strict=True)
    )
    expected, found = everything(whole), everything(second)
    assert set(expected) == set(found)
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    assert any(not torch.equal(v, expected[k]) for k, v in start.items() if k.startswith("student/"))
    # the last checkpoint is the finished run
    third = make(objective)
    third.resume(path)
    assert third.step == SETTINGS.iterations


def test_progress_saving_and_previews(tmp_path):
    trainer, seen = make(DMD2((999, 499), 2.0, ratio=3)), []
    path = tmp_path / "run.safetensors"
    trainer.run(checkpoint=path, save_every=4, callback=lambda p: seen.append((p.step, p.total, set(p.losses), path.exists())))
    assert [s[0] for s in seen] == list(range(1, 9)) and seen[0][1] == 8
    assert [s[2] for s in seen[:4]] == [{"critic", "student"}, {"critic"}, {"critic"}, {"critic", "student"}]
    assert [s[3] for s in seen] == [False] * 4 + [True] * 4
    assert len(trainer.history) == 8 and trainer.history[1][1] != trainer.history[1][1]
    student = trainer._updaters["student"].parameters
    before = {k: p.detach().clone() for k, p in student.items()}
    with trainer.averaged():
        assert all(torch.equal(p, trainer.average[k]) for k, p in student.items())
    assert all(torch.equal(p, before[k]) for k, p in student.items())


def test_runs_inside_inference_mode():
    whole, net = make(), base()
    whole.run()
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            again = make(net=net)
            again.run()
            with again.averaged():
                pass
        assert all(torch.equal(v, everything(again)[k]) for k, v in everything(whole).items())


def test_losses_that_are_not_finite_are_skipped_and_counted(tmp_path):
    trainer = make(settings=replace(SETTINGS, iterations=100))
    before = {k: v.clone() for k, v in everything(trainer).items()}
    good = trainer.objective
    calls = []

    class Broken:
        def __getattr__(self, name):
            return getattr(good, name)

        def loss(self, network, *rest):
            calls.append(network)
            return good.loss(network, *rest) * (float("nan") if network == "student" else 1.0)

    trainer.objective = Broken()
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingError, match=r"20 updates had a loss.*iteration 20; lower the learning rates.*run\.safetensors"):
        trainer.run(checkpoint=path)
    assert calls.count("student") == 20
    after = everything(trainer)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("student/"))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("critic/"))
    assert path.exists()


def test_other_settings_and_other_files_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    make().save(path)
    optimisers = {**SETTINGS.optimisers, "critic": Optimiser(2e-2)}
    with pytest.raises(TrainingError, match=r"batch 5 -> 6; notes\.rank 2 -> 4; optimisers\.critic\.lr 0\.01 -> 0\.02\. Delete"):
        make(settings=replace(SETTINGS, batch=6, notes={"rank": 4}, optimisers=optimisers)).resume(path)
    with pytest.raises(TrainingError, match=r"objective\.guidance 2\.0 -> 3\.0; objective\.objective\.guidance"):
        make(TDM(2, 3.0)).resume(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(TrainingError, match=r"run\.safetensors is not a FewStep training checkpoint"):
        make().resume(path)
    path.write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="not a FewStep training checkpoint"):
        make().resume(path)
    with pytest.raises(TrainingError, match="not a FewStep training checkpoint"):
        make().resume(tmp_path / "none.safetensors")


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=r"run\.safetensors could not be written to .*file"):
        make().run(checkpoint=tmp_path / "file" / "run.safetensors")


def test_what_a_run_needs():
    with pytest.raises(OptionError, match="needs critic"):
        make(critic=False)
    with pytest.raises(OptionError, match=r"\['critic', 'student'\] and optimisers \['student'\]"):
        make(settings=replace(SETTINGS, optimisers={"student": Optimiser(1e-3)}))
    for change, says in (({"batch": 0}, "batch is 0"), ({"iterations": 0}, "iterations is 0"), ({"ema": 1.5}, "ema is 1.5")):
        with pytest.raises(OptionError, match=says):
            replace(SETTINGS, **change)
    with pytest.raises(OptionError, match="learning rate is 0"):
        Optimiser(0)
    with pytest.raises(OptionError, match="decay is 'linear'"):
        Optimiser(1e-3, decay="linear")


def test_learning_rates():
    warm = Optimiser(1.0 - 1e-9, warmup=10)
    assert [round(warm.rate(s, 100), 3) for s in (0, 4, 9, 10, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = Optimiser(0.5, warmup=0, decay="cosine")
    assert cosine.rate(0, 100) == 0.5 and cosine.rate(50, 100) == pytest.approx(0.25) and cosine.rate(99, 100) < 1e-3
    restarts = Optimiser(0.5, decay="cosine", cycles=2)
    assert restarts.rate(50, 100) == 0.5 and restarts.rate(49, 100) < 1e-2


def test_gradient_clip():
    weight = nn.Parameter(torch.zeros(4))
    updater = Updater(Optimiser(0.1, clip=1.0), {"w": weight})
    assert updater.update((weight * 100).sum(), 0.1)
    assert weight.grad.norm() == pytest.approx(1.0, rel=1e-4)
    assert not updater.update((weight * float("inf")).sum(), 0.1)

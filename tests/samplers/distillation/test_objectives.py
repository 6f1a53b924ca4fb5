"""Objectives: no gradient at the fixed point, the diffusion's variance, and the closed form on one Gaussian."""

import numpy as np
import pytest
import torch
from fewstep.samplers import frames
from fewstep.samplers.distillation import (
    DMD2,
    EMPTY,
    TDM,
    Batch,
    Context,
    Optimiser,
    TimeTable,
    Trainer,
    TrainSettings,
    denoiser_on,
    guided,
    preference_loss,
)
from fewstep.samplers.distillation.hipa import high_pass, hipa_loss
from fewstep.samplers.distillation.objective import Draws
from fewstep.samplers.distillation.tdm import importance, jump
from fewstep.samplers.errors import OptionError, ScheduleError
from torch import nn

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
VP = TimeTable.of(frames.discrete_vp(betas=BETAS))
FLOW = TimeTable.of(frames.flow())
MEAN, STD = 0.7, 0.4


def gaussian(table, mean, log_std):
    """The exact x_0 prediction for data N(mean, exp(log_std)^2)."""

    def denoise(x, t, prompts):
        alpha, sigma = table.at(t, x)
        variance = (2 * log_std).exp()
        return (mean * sigma**2 + alpha * variance * x) / (sigma**2 + alpha**2 * variance)

    return denoise


def test_table_of_frames():
    ac = np.cumprod(1 - BETAS)
    np.testing.assert_allclose(VP.alpha, np.sqrt(ac), rtol=1e-13)
    np.testing.assert_allclose(VP.sigma, np.sqrt(1 - ac), rtol=1e-12)
    np.testing.assert_allclose(FLOW.sigma, np.arange(1, 1001) / 1000, rtol=1e-13)
    with pytest.raises(ScheduleError, match="the model's own frame"):
        TimeTable.of(frames.edm())
    with pytest.raises(ScheduleError, match="the model's own frame"):
        TimeTable.of(frames.discrete_vp(betas=BETAS).unit_alpha())


@pytest.mark.parametrize("kind", ["x_0", "eps", "v", "flow"])
@pytest.mark.parametrize("table", [VP, FLOW])
def test_denoiser_of_every_prediction(table, kind):
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).unbind()
    t = torch.tensor([0, 400, 998])
    alpha, sigma = table.at(t, x_0)
    norm = (alpha**2 + sigma**2).sqrt()
    output = {"x_0": x_0, "eps": eps, "v": (alpha * eps - sigma * x_0) / norm, "flow": eps - x_0}[kind]
    x = alpha * x_0 + sigma * eps
    denoise = denoiser_on(table, lambda *_: output, kind)
    torch.testing.assert_close(denoise(x, t, None), x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(table.noise_of(x, x_0, t), eps, rtol=1e-9, atol=1e-9)
    to = table.at(t - 0, x)
    torch.testing.assert_close(table.ddim(x, x_0, t, 0), float(table.alpha[0]) * x_0 + float(table.sigma[0]) * eps)
    assert to[0].shape == (3, 1)


@pytest.mark.parametrize("table", [VP, FLOW])
def test_diffusion_has_the_right_variance(table):
    t_m, t = torch.meshgrid(torch.arange(0, 998, 7), torch.arange(0, 999, 7), indexing="ij")
    later = t >= t_m
    t_m, t = t_m[later], t[later]
    alpha, sigma = table.alpha[t], table.sigma[t]
    old = alpha * table.sigma[t_m] / table.alpha[t_m]
    assert (sigma**2 - old**2 >= -1e-15).all()
    # with x_0 = 0 the state is noise alone: unit noise of both kinds must add up to sigma_t
    one, none = torch.ones(len(t), 1, dtype=torch.float64), torch.zeros(len(t), 1, dtype=torch.float64)
    t_g = torch.full_like(t, 998)
    from_old = jump(table, table.at(t_g, one)[1], none, t_g, t_m, t, none)
    from_new = jump(table, none, none, t_g, t_m, t, one)
    torch.testing.assert_close((from_old.x_t**2 + from_new.x_t**2).sqrt()[:, 0], sigma, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(from_old.e**2 + from_new.e**2, one, rtol=1e-9, atol=1e-12)


def test_importance_weight():
    z = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(importance(z, z), torch.ones(4, 1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(importance(2 * z, z), (-1.5 * (z**2).mean((1, 2, 3), keepdim=True)).exp())


@pytest.mark.parametrize("objective", [TDM(4, 1.0), TDM(4, 1.0, separate=False, huber=None), DMD2(guidance=1.0)])
def test_no_gradient_where_all_three_agree(objective):
    """Teacher, student and critic are one: nothing is left to learn."""
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def same(x, t, prompts):
        return (x * scale).tanh()

    context = Context(VP, same, same, same, Draws(0))
    batch = Batch(torch.randn(6, 2, 3, 3, dtype=torch.float64), torch.arange(6))
    with torch.no_grad():
        states = objective.roll(batch, context)
    loss = objective.loss("student", batch, states, context)
    assert torch.autograd.grad(loss, scale)[0] == 0
    # and away from that point there is one
    moved = Context(VP, lambda x, t, p: (0.5 * x).tanh(), same, same, Draws(0))
    assert torch.autograd.grad(objective.loss("student", batch, states, moved), scale)[0] != 0


class Affine(nn.Module):
    """A one-step student, x_0 = shift + scale x, and a critic that is a Gaussian's exact prediction."""

    def __init__(self, table):
        super().__init__()
        self.shift, self.scale = (nn.Parameter(torch.tensor(v)) for v in (0.0, 1.0))
        self.mean, self.log_std = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))
        self.critic = gaussian(table, self.mean, self.log_std)

    def student(self, x, t, prompts):
        return self.shift + self.scale * x


@pytest.mark.parametrize(("objective", "table"), [
    (TDM(1, 1.0), VP), (TDM(1, 1.0), FLOW), (DMD2((999,), 1.0, ratio=2), VP), (DMD2((999,), 1.0, ratio=2), FLOW),
])
def test_one_gaussian_is_learned(objective, table):
    """The student's outputs end with the data's mean and deviation, and so does the critic, which only ever saw them."""
    teacher = gaussian(table, torch.tensor(MEAN), torch.tensor(STD).log())
    model = Affine(table)
    parts = {
        "student": {"shift": model.shift, "scale": model.scale}, "critic": {"mean": model.mean, "log_std": model.log_std},
    }
    settings = TrainSettings(
        500, 256, (1,), 1,
        {"student": Optimiser(0.02, (0.0, 0.95), decay="cosine"), "critic": Optimiser(0.03, (0.0, 0.95), decay="cosine")},
    )
    context = Context(table, teacher, model.student, model.critic, Draws(0))
    trainer = Trainer(objective, context, parts, settings)
    trainer.run()
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), trainer.averaged():
        drawn = model.student(x, torch.full((len(x),), 999), None)
    assert drawn.mean() == pytest.approx(MEAN, abs=0.04) and drawn.std() == pytest.approx(STD, abs=0.04)
    assert model.mean.item() == pytest.approx(MEAN, abs=0.04)
    assert model.log_std.exp().item() == pytest.approx(STD, abs=0.04)


def test_guidance_of_the_teacher():
    x, prompts = torch.ones(2, 3), torch.tensor([0, 4])

    def teacher(x, t, prompts):
        return torch.where(prompts == EMPTY, 1.0, 3.0)[:, None] * x

    assert torch.equal(guided(teacher, x, None, prompts, 1.0), 3 * x)
    assert torch.equal(guided(teacher, x, None, prompts, 2.5), (1 + 2.5 * 2) * x)


def test_tdm_times():
    assert TDM().times == [999, 749, 499, 249] and TDM(total=900).times == [899, 674, 449, 224]
    assert TDM(2).times == [999, 499]
    with pytest.raises(OptionError, match="40 steps leave intervals of 25"):
        TDM(40)


def test_presets_name_what_a_loader_needs():
    assert TDM(2, 3.0).preset() == {
        "method": "tdm", "steps": 2, "timesteps": [999, 499], "update": "ddim", "cfg": 1, "guidance": 3.0,
        "objective": {"steps": 2, "guidance": 3.0, "total": 1000, "separate": True, "huber": 1e-3},
    }
    assert DMD2((499,)).preset() == {
        "method": "dmd2", "steps": 1, "timesteps": [499], "update": "renoise", "cfg": 1, "guidance": 8.0,
        "objective": {"times": (499,), "guidance": 8.0, "ratio": 5},
    }


def test_dmd2_settings():
    assert [s for s in range(11) if "student" in DMD2(ratio=5).updates(s)] == [0, 5, 10]
    for times in ((), (499, 749), (999, 999), (5, -1)):
        with pytest.raises(OptionError, match="expected table indices that fall"):
            DMD2(times)


def test_draws_have_a_stream_per_purpose():
    one, two = Draws(3), Draws(3)
    two.integers(0, 10, 100)
    two.prompts(10, 7)
    like = torch.empty(4, 5)
    assert torch.equal(one.noise(like), two.noise(like))
    assert not torch.equal(Draws(4).noise(like), Draws(3).noise(like))
    low, high = torch.tensor([0, 20, 300]).repeat(500), torch.tensor([2, 25, 301]).repeat(500)
    drawn = one.integers(low, high, 1500)
    assert drawn.dtype == torch.int64 and (drawn >= low).all() and (drawn < high).all()
    assert {int(v) for v in drawn[1::3]} == {20, 21, 22, 23, 24}
    counts = one.prompts(10, 34).bincount(minlength=10)
    assert counts.sum() == 34 and set(counts.tolist()) == {3, 4}


def test_preference_loss_of_trajectories():
    """Steps of one trajectory add up inside the sigmoid; outside the clip the gradient is zero."""
    win = torch.tensor([[0.02, -0.03], [0.01, 0.5]], dtype=torch.float64, requires_grad=True)
    lose = torch.tensor([[-0.02, 0.04], [0.0, 0.0]], dtype=torch.float64)
    zero = torch.zeros_like(lose)
    loss = preference_loss(win, zero, lose, zero, beta=50.0)
    margins = torch.tensor([0.02 - 0.03 + 0.02 - 0.04, 0.01 + np.log(1.1)], dtype=torch.float64)
    torch.testing.assert_close(loss.detach(), torch.log1p(torch.exp(-50.0 * margins)).mean())
    gradient = torch.autograd.grad(loss, win)[0]
    assert gradient[1, 1] == 0 and (gradient[0] != 0).all()


def test_high_pass_keeps_what_lies_above_the_radius():
    n = torch.arange(16, dtype=torch.float64)
    low, high = torch.cos(2 * np.pi * n / 16), torch.cos(2 * np.pi * 6 * n / 16)  # 1/8 and 6/8 of the highest frequency
    image = 3.0 + low[:, None] + high[None, :]
    torch.testing.assert_close(high_pass(image), high[None, :].expand(16, 16), atol=1e-12, rtol=0)
    torch.testing.assert_close(high_pass(image, 0.0), image - 3.0, atol=1e-12, rtol=0)
    assert high_pass(torch.zeros(2, 3, 5, 7, dtype=torch.float16)).dtype == torch.float16


def test_hipa_loss_has_two_terms():
    n = torch.arange(16, dtype=torch.float64)
    teacher = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    smooth = teacher + torch.cos(2 * np.pi * n / 16)
    sharp = teacher + torch.cos(2 * np.pi * 6 * n / 16)
    assert hipa_loss(smooth, teacher, weight=3.0).item() == pytest.approx(0.5)
    assert hipa_loss(sharp, teacher, weight=3.0).item() == pytest.approx(0.5 + 3 * 0.5)
    assert hipa_loss(sharp, teacher, perceptual=lambda a, b: a.new_tensor(7.0)).item() == pytest.approx(7.5)

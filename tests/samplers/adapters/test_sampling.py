"""The samplers and the noise levels of distilled models: the published rows, the host's own tables, strengths over steps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep.samplers import adapters, frames, make_plan, run
from fewstep.samplers.adapters.forward import ForwardAdditions, can_be_added
from fewstep.samplers.adapters.presets import shipped
from fewstep.samplers.adapters.strength import boundaries, keyframes, percent_of, strengths_from_text
from fewstep.samplers.adapters.trained_times import ModelTimes, lcm_steps, levels_from_text, preset_sigmas, trailing_steps
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.errors import AdapterError, OptionError, ScheduleError
from host_reads import HostReads
from safetensors import safe_open

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "distillation.safetensors"
AC = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
TABLE = np.sqrt((1 - AC) / AC)
SD, FLOW = ModelTimes(False, range(1000), TABLE), ModelTimes(True, shift=3.0)
UNIT = frames.discrete_vp(AC).unit_alpha()


def rows(plan):
    """(A, C_0, C_1, N) of every step."""
    found = []
    for k, stage in enumerate(plan.stages):
        row = stage.carry
        found.append((row.x, row.m.get(k, 0.0), row.m.get(k - 1, 0.0), row.noise.coefficient if row.noise else 0.0))
    return np.array(found)


# noise levels
def test_training_steps_map_onto_the_models_table():
    """The host's own numbers of these training steps."""
    host = {999: 14.614641, 899: 8.302803, 749: 4.081729, 674: 3.009836, 499: 1.612886, 399: 1.160578, 249: 0.693205, 224: 0.629918}
    for step, sigma in host.items():
        assert SD.sigma_of(step) == pytest.approx(sigma, abs=5e-7) and SD.sigma_of(step) == TABLE[step]
    between = SD.sigma_of(749.25)  # log-linear, as the host interpolates
    assert between == pytest.approx(math.exp(0.75 * math.log(TABLE[749]) + 0.25 * math.log(TABLE[750])))
    with pytest.raises(ScheduleError, match="outside the model's 0 to 999"):
        SD.sigma_of(1000)
    with pytest.raises(ScheduleError, match="no table of training steps"):
        ModelTimes(False).sigma_of(999)


def test_rules_of_spacing():
    assert trailing_steps(4) == [999, 749, 499, 249] and trailing_steps(3) == [999, 666, 332] and trailing_steps(1) == [999]
    assert lcm_steps(4) == [999, 759, 499, 259] and lcm_steps(8) == [999, 879, 759, 639, 499, 379, 259, 139]


@pytest.mark.parametrize(("preset", "steps", "expected"), [
    ("qwen-lightning", 4, [1, .9, .75, .5, 0]), ("qwen-lightning", 8, [1, .95455, .9, .83333, .75, .64286, .5, .3, 0]),
    ("wan21-lightx2v", 4, [1, .9375, .83333, .625, 0]), ("tdm-sd3", 4, [.999833, .947169, .856898, .666370, 0]),
    ("ltx2-distilled", 8, [1, .99375, .9875, .98125, .975, .909375, .725, .421875, 0]), ("ltx2-distilled-upscale", 3, [.909375, .725, .421875, 0]),
])
def test_flow_presets_give_the_published_levels(preset, steps, expected):
    chosen = shipped()[preset]
    assert preset_sigmas(chosen.grid, steps, FLOW, shift=chosen.shift) == pytest.approx(expected, abs=5.1e-6)


def test_a_flow_preset_without_shift_takes_the_models():
    assert preset_sigmas({"kind": "flow"}, 4, FLOW) == pytest.approx([1, .9, .75, .5, 0])
    assert preset_sigmas({"kind": "flow", "start": 0.999}, 4, FLOW) == pytest.approx([.999666, .899640, .749625, .499667, 0], abs=5e-7)


@pytest.mark.parametrize(("preset", "steps", "times"), [
    ("dmd2-sdxl", 4, [999, 749, 499, 249]), ("tdm-sd15", 4, [999, 749, 500, 250]), ("tdm-sd15", 2, [999, 499]), ("lcm", 4, [999, 759, 499, 259]),
    ("dmd2-sdxl-1step", 1, [399]), ("hyper-sdxl-1step-unet", 1, [800]), ("hipa", 1, [999]), ("tdm-pixart", 4, [899, 674, 449, 224]),
])
def test_table_presets_give_their_training_steps(preset, steps, times):
    assert preset_sigmas(shipped()[preset].grid, steps, SD) == [*(TABLE[t] for t in times), 0.0]


def test_image_to_image_cuts_the_list_and_never_respaces_it():
    whole = preset_sigmas({"kind": "trailing"}, 4, SD)
    for denoise, kept in ((1.0, 4), (0.75, 3), (0.5, 2), (0.01, 1)):
        assert preset_sigmas({"kind": "trailing"}, 4, SD, denoise=denoise) == whole[-kept - 1 :]
    assert preset_sigmas({"kind": "trailing"}, 4, SD, denoise=0.0) == []


def test_grids_that_do_not_belong_to_the_model():
    with pytest.raises(ScheduleError, match="for flow models"):
        preset_sigmas({"kind": "flow"}, 4, SD)
    with pytest.raises(ScheduleError, match="gives 3 noise levels, 4 steps"):
        preset_sigmas({"kind": "sigmas", "sigmas": [3, 2, 1]}, 4, SD)


@pytest.mark.parametrize(("text", "model", "expected"), [
    ("999, 749, 499, 249", SD, [TABLE[t] for t in (999, 749, 499, 249)]), ("999", SD, [TABLE[999]]),
    ("1, 0.75, 0.5, 0.25, 0", FLOW, [1, .9, .75, .5]), ("sigmas: 10 5 1 0", SD, [10, 5, 1]), ("999 499", FLOW, [1, .75]),
])
def test_times_that_the_user_types(text, model, expected):
    assert levels_from_text(text, model) == pytest.approx([*expected, 0.0])


@pytest.mark.parametrize("text", ["a, b", "499, 999", "", "sigmas: 1, 2", "sigmas: nan", "999, 999"])
def test_times_that_make_no_schedule(text):
    with pytest.raises(ScheduleError):
        levels_from_text(text, SD)


# the published rows
def sd_grid(*times):
    return [*(TABLE[t] for t in times), 0.0]


@pytest.mark.parametrize(("shift", "expected"), [
    (6, [(.947327, .052673, 0), (.904694, .104297, -.008991), (.777654, .333653, -.111308), (0, 1, 0)]),
    (3, [(.899940, .100060, 0), (.833250, .182481, -.015731), (.666556, .500369, -.166924), (0, 1, 0)]),
])
def test_tdm_on_flow_is_dpm_solver_with_the_right_lambda(shift, expected):
    sigmas = preset_sigmas({"kind": "flow", "start": 0.999}, 4, FLOW, shift=shift)
    found = rows(shipped()["tdm-sd3"].recipe(4).resolve(frames.flow(), sigmas))
    np.testing.assert_allclose(found[:, :3], expected, atol=6e-7)


def test_tdm_on_a_noise_model():
    found = rows(shipped()["tdm-sd15"].recipe(4).resolve(UNIT, sd_grid(999, 749, 500, 250)))
    expected = [(.279290, .720710, 0), (.396469, .822410, -.218879), (.429962, .830071, -.260034), (0, 1, 0)]
    np.testing.assert_allclose(found[:, :3], expected, atol=1.1e-6)


def test_tcd_goes_below_the_next_step_and_noises_up():
    times, below = (999, 759, 499, 259), (531, 349, 181)
    found = rows(make_plan("tcd", UNIT, sd_grid(*times), gamma=0.3))
    for (a, c, _, n), s, t, u in zip(found[:-1], times[:-1], times[1:], below, strict=True):
        kept = TABLE[u] / TABLE[s]
        assert (a, c) == pytest.approx((kept, 1 - kept), rel=1e-9) and n == pytest.approx(math.sqrt(TABLE[t] ** 2 - TABLE[u] ** 2), rel=1e-9)
    np.testing.assert_allclose(found[-1], (0, 1, 0, 0), atol=0)
    np.testing.assert_allclose(rows(make_plan("tcd", UNIT, sd_grid(*times), gamma=0.0)), rows(make_plan("ddim", UNIT, sd_grid(*times))), atol=1e-12)


def test_tcd_in_the_vp_frame_is_the_published_update():
    """x_u = alpha_u x_0 + sigma_u eps, then x_t = (alpha_t/alpha_u) x_u + sqrt(1 - alpha_t^2/alpha_u^2) z."""
    frame = frames.discrete_vp(AC)
    times = (999, 759, 499, 259)
    sigma = [math.sqrt(1 - AC[t]) for t in times]
    found = rows(make_plan("tcd", frame, [*sigma, 0.0], gamma=0.3))
    for (a, c, _, n), s, t, u in zip(found[:-1], times[:-1], times[1:], (531, 349, 181), strict=True):
        ratio = math.sqrt(AC[t] / AC[u])
        eps = math.sqrt((1 - AC[u]) / (1 - AC[s]))
        assert a == pytest.approx(ratio * eps, rel=1e-9)
        assert c == pytest.approx(ratio * (math.sqrt(AC[u]) - eps * math.sqrt(AC[s])), rel=1e-9)
        assert n == pytest.approx(math.sqrt(1 - ratio**2), rel=1e-9)


def test_renoising_keeps_nothing_of_the_old_state():
    np.testing.assert_allclose(rows(make_plan("consistency", UNIT, sd_grid(999, 749, 499))),
                               [(0, 1, 0, TABLE[749]), (0, 1, 0, TABLE[499]), (0, 1, 0, 0)], rtol=1e-12)
    np.testing.assert_allclose(rows(make_plan("consistency", frames.flow(), [1, .9, .75, .5, 0])),
                               [(0, 1 - s, 0, s) for s in (.9, .75, .5, 0)], atol=1e-15)


def test_euler_ancestral_is_the_published_split():
    s, t = TABLE[999], TABLE[499]
    up = math.sqrt(t**2 * (s**2 - t**2) / s**2)
    down = math.sqrt(t**2 - up**2)
    np.testing.assert_allclose(rows(shipped()["pso-turbo"].recipe(2).resolve(UNIT, [s, t, 0.0]))[0], (down / s, 1 - down / s, 0, up), rtol=1e-9)


@pytest.mark.parametrize(("frame", "sigma", "scale"), [
    (UNIT, TABLE[399], math.sqrt(1 + TABLE[399] ** 2)), (frames.flow(), 0.8, 1.0), (frames.discrete_vp(AC), 0.7, 1.0),
])
def test_one_step_models_see_unit_noise(frame, sigma, scale):
    """The host starts at sigma * z, of which the network would see .7575 z at t = 399; the plan makes it z."""
    z = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    seen = []

    def denoiser(x, level):
        seen.append((x.clone(), float(level[0])))
        return x.tanh()

    plan = make_plan("consistency", frame, [sigma, 0.0], start="noise")
    result = run(plan, denoiser, sigma * z)
    torch.testing.assert_close(seen[0][0] / scale, z)
    assert seen[0][1] == pytest.approx(sigma) and torch.equal(result, seen[0][0].tanh()) and not plan.stochastic
    assert float(TABLE[399] / math.sqrt(1 + TABLE[399] ** 2)) == pytest.approx(0.7575, abs=1e-4)


@pytest.mark.parametrize("solver", ["consistency", "tcd"])
@pytest.mark.parametrize(("frame", "sigmas"), [(UNIT, sd_grid(999, 759, 499, 259)), (frames.flow(), [1, .9, .75, .5, 0.0])], ids=["sd", "flow"])
def test_a_samples_noise_does_not_depend_on_its_batch(solver, frame, sigmas):
    plan = make_plan(solver, frame, sigmas)
    assert plan.stochastic and not plan.biased and plan.nfe == 4
    x = torch.randn(3, 4, 8, 8) * sigmas[0]
    together = run(plan, lambda y, s: y.tanh(), x, seed=[7, 8, 9])
    alone = torch.cat([run(plan, lambda y, s: y.tanh(), x[i : i + 1], seed=7 + i) for i in range(3)])
    assert torch.equal(together, alone) and not torch.equal(together, run(plan, lambda y, s: y.tanh(), x, seed=1))


def test_gamma_has_a_range():
    with pytest.raises(OptionError, match="gamma"):
        make_plan("tcd", UNIT, sd_grid(999, 499), gamma=1.5)


def test_steps_lower_the_order():
    assert shipped()["tdm-sd15"].recipe(1).resolve(UNIT, sd_grid(999)).nfe == 1


# settings
def settings(preset, model=SD, **own):
    report = adapters.Report()
    return adapters.settings_for(shipped()[preset] if preset else None, adapters.Overrides(**own), model, report), report


def test_a_preset_sets_everything():
    found, report = settings("dmd2-sdxl")
    assert (found.recipe.solver, found.steps, found.cfg) == ("consistency", 4, 1.0) and list(found.sigmas) == sd_grid(999, 749, 499, 249)
    assert not report.warnings and "sources:" in report.text


def test_the_users_numbers_win_and_contradictions_are_warned_of():
    found, report = settings("dmd2-sdxl", steps=20, cfg=7.0, sampler="euler")
    assert (found.recipe.solver, found.steps, found.cfg) == ("ddim", 20, 7.0)
    assert [w.split(":")[0] for w in report.warnings] == ["20 steps", "CFG 7", "sampler euler"]
    found, report = settings("qwen-lightning", FLOW, shift=3.1)
    assert found.sigmas[1] == pytest.approx(3.1 * .75 / (1 + 2.1 * .75)) and "shift 3.1" in report.warnings[0]
    assert settings("tcd", gamma=0.5)[0].recipe.options["gamma"] == 0.5
    assert settings("dmd2-sdxl", times="999, 499")[0].steps == 2
    assert list(settings("dmd2-sdxl", times="999, 499", denoise=0.5)[0].sigmas) == sd_grid(499)
    assert settings("dmd2-sdxl", denoise=0.5)[0].steps == 2
    assert any("nobody has said how strong" in w for w in settings("tdm-sd35-medium", FLOW)[1].warnings)


def test_without_a_preset_there_are_plain_defaults():
    found, report = settings(None)
    assert (found.recipe.solver, found.steps, found.cfg) == ("ddim", 8, 1.0) and not report.warnings
    assert settings(None, FLOW)[0].sigmas[0] == 1.0 and settings(None, sampler="dpmpp_2m", steps=1)[0].recipe.options["order"] == 1


# strength over steps
def test_strengths_are_spread_over_the_steps():
    assert strengths_from_text("1, 1, 0.5, 0", 4) == [1, 1, 0.5, 0] and strengths_from_text("1", 3) == [1, 1, 1]
    assert strengths_from_text("1, 0", 4) == pytest.approx([1, 2 / 3, 1 / 3, 0]) and strengths_from_text("1 0.5 0", 1) == [1]
    assert strengths_from_text("0, 1, 0, 1, 0", 3) == [0, 0, 0]
    for bad in ("", "one", "1, nan", "inf"):
        with pytest.raises(OptionError, match="strengths"):
            strengths_from_text(bad, 4)


def test_keyframes_lie_halfway_between_steps():
    flow = lambda p: 3 * (1 - p) / (1 + 2 * (1 - p)) if p > 0 else 1.0  # noqa: E731
    sigmas = [1, .9, .75, .5, 0]
    frames_ = keyframes([1, 1, .5, 0], sigmas, flow)
    assert [strength for _, strength in frames_] == [1, .5, 0] and frames_[0][0] == 0
    for (start, _), (high, low) in zip(frames_[1:], ((.9, .75), (.75, .5)), strict=True):
        assert flow(start) == pytest.approx((high + low) / 2)
    table = lambda p: 999999999.9 if p <= 0 else 0.0 if p >= 1 else float(np.interp((1 - p) * 999, range(1000), TABLE))  # noqa: E731
    assert percent_of(table, TABLE[499]) == pytest.approx(1 - 499 / 999)
    with pytest.raises(ScheduleError):
        boundaries([1.0])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.qkv, self.out = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.Linear(4, 12), torch.nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(self.conv(x).flatten(2).transpose(1, 2)).chunk(3, -1)
        return self.out(q * k.tanh() + v)


def net_adapter(make, net):
    targets = adapters.targets_of(net)
    names = {**targets.names, **{f"transformer.to_{c}": ("diffusion_model.qkv.weight", (0, 4 * i, 4)) for i, c in enumerate("qkv")}}
    targets = adapters.Targets(names, targets.shapes, targets.base)
    shapes = {"conv": (4, 3, 3, 3), "to_q": (4, 4), "to_v": (4, 4), "out": (4, 4)}
    return make.load(make.tensors_of(make.pairs_for(shapes), lambda m: f"transformer.{m}", alpha=3), targets)


def test_additions_while_running_are_the_merged_weights_of_every_step(make):
    net, x = Net(), torch.randn(2, 3, 8, 8)
    adapter = net_adapter(make, net)
    plain = net(x)
    strengths, sigmas = [1.0, 0.5, 0.0], [9.0, 3.0, 1.0, 0.0]
    additions = ForwardAdditions(adapter.patches, strengths, sigmas)
    state = {f"diffusion_model.{k}": v for k, v in net.state_dict().items()}
    # at the steps themselves, and at inner evaluations: the nearer step's strength
    for sigma, strength in ((9.0, 1.0), (3.0, 0.5), (1.0, 0.0), (6.1, 1.0), (5.9, 0.5), (0.1, 0.0), (20.0, 1.0)):
        with additions.attached(net, torch.tensor([sigma, sigma])):
            found = net(x)
        merged = {k.removeprefix("diffusion_model."): v for k, v in make.merged(adapter, state, strength).items()}
        expected = torch.func.functional_call(net, merged, (x,))
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        assert torch.equal(net(x), plain)  # nothing stays behind
    assert (found - plain).abs().max() > 0.1


def test_additions_read_nothing_on_the_host(make):
    net, x, sigma = Net(), torch.randn(2, 3, 8, 8), torch.tensor([3.0, 3.0])
    additions = ForwardAdditions(net_adapter(make, net).patches, [1.0, 0.5], [9.0, 3.0, 0.0])
    with torch.no_grad(), HostReads() as reads, additions.attached(net, sigma):
        net(x)
    assert reads.count == 0


def test_additions_leave_nothing_behind_after_an_error(make):
    net, x = Net(), torch.randn(1, 3, 8, 8)
    plain = net(x)
    additions = ForwardAdditions(net_adapter(make, net).patches, [1.0], [1.0, 0.0])
    with pytest.raises(RuntimeError, match="stop"), additions.attached(net, torch.ones(1)):
        raise RuntimeError("stop")
    assert torch.equal(net(x), plain)
    with pytest.raises(AdapterError, match="no layer"), additions.attached(torch.nn.Linear(1, 1), torch.ones(1)):
        pass


def test_whole_weights_cannot_be_added(make):
    net = Net()
    adapter = make.load({"diffusion_model.out.diff": torch.ones(4, 4)}, adapters.targets_of(net))
    assert not can_be_added(adapter.patches)
    with pytest.raises(AdapterError, match="whole weights"):
        ForwardAdditions(adapter.patches, [1.0], [1.0, 0.0])


# the official trainer's own roll-out
@pytest.mark.parametrize(("case", "times"), [("tdm_separate", (899, 674, 449, 224)), ("tdm_shared_mse", (999, 749, 499, 249))])
def test_the_few_step_ode_passes_through_the_trainers_states(case, times):
    """The student (teacher's noise prediction + theta tanh x) from x_T over the trained times: golden states, VP frame."""
    with safe_open(GOLDEN, "pt") as file:
        theta = json.loads(file.metadata()[case])["theta"]
        states, x_T = file.get_tensor(f"{case}.states"), file.get_tensor(f"{case}.x_T")
    frame, mixture = frames.discrete_vp(AC), GaussianMixture.make(0)
    teacher = mixture.denoiser(frame, 1.0)

    def student(x, sigma):
        s = sigma.reshape(-1, 1, 1, 1)
        alpha = (1 - s**2).sqrt()
        eps = (x - alpha * teacher(x, sigma)) / s + theta * x.tanh()
        return (x - s * eps) / alpha

    seen = [x_T]
    plan = make_plan("ddim", frame, [math.sqrt(1 - AC[t]) for t in times])
    seen.append(run(plan, student, x_T, callback=lambda p: seen.append(p.x.clone())))
    assert len(seen) == 5  # x_T, three steps, and the result, which is the last of them
    for found, golden in zip(seen[:4], states.flip(0), strict=True):
        assert (found - golden).abs().max() < 1e-9 * golden.abs().max()

"""Distillation objectives: TDM and DMD2 losses, PSO and SPO step log-probabilities, by the official trainers' code."""

import torch
from fewstep.samplers import frames
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.distillation import dmd2, guided, preference, tdm
from fewstep.samplers.distillation.objective import EMPTY
from fewstep.samplers.distillation.table import TimeTable, denoiser_on

from .case import SD_BETAS

DOUBLE, SINGLE = 1e-9, 1e-6  # SINGLE where the official code passes through float32


def accepts(head, settings):
    return head.get("system") == "distillation objectives" and "theta" in settings


def run(case):
    {"TDM": run_tdm, "DMD2": run_dmd2, "PSO": run_preference, "SPO": run_preference}[case.set["method"].split()[0]](case)


class Models:
    """The note's denoisers: teacher, critic, and a student whose noise prediction is the teacher's + theta tanh(x)."""

    def __init__(self, case):
        self.table = TimeTable.of(frames.discrete_vp(betas=SD_BETAS))
        self.theta = torch.tensor(case.set["theta"], dtype=torch.float64, requires_grad=True)
        self.prompts = torch.zeros(64, dtype=torch.int64)
        self.teacher, self.critic = self._mixture(0), self._mixture(5)

    def _mixture(self, seed):
        model = GaussianMixture.make(seed)

        def denoise(x, t, prompts):
            weights = model.w_uncond if bool((prompts == EMPTY).all()) else model.w_cond
            return model.posterior_mean(x, self.table.alpha[t], self.table.sigma[t], weights)

        return denoise

    def student(self, x, t, prompts):
        eps = self.table.noise_of(x, self.teacher(x, t, prompts), t) + self.theta * x.tanh()
        return denoiser_on(self.table, lambda *_: eps, "eps")(x, t, prompts)


def run_tdm(case):
    s, m = case.set, Models(case)
    objective = tdm.TDM(4, s["cfg"], s["total_steps"], s["separate"], 1e-3 if s["huber"] else None)
    prompts = m.prompts[: len(case["x_T"])]
    context = tdm.Context(m.table, m.teacher, m.student, m.critic, None)
    with torch.no_grad():
        states = objective.roll(tdm.Batch(case["x_T"], prompts), context)["states"]
    case.compare(states, DOUBLE, "states")

    def jumped(part):
        t_g, t_m, t, z = (case[f"{part}.{key}"] for key in ("timesteps_g", "timesteps_mid", "timesteps", "z"))
        i = (t_g + 1) * objective.steps // objective.total
        found_g, found_m = objective.interval(i)
        assert torch.equal(found_g, t_g) and torch.equal(found_m, t_m)
        lowest, highest = t_m.clamp(min=20), (t_g if s["separate"] else s["total_steps"]) - 10
        assert (t >= lowest).all() and (t < highest).all()
        x = states[i - 1, torch.arange(len(i))]
        x_0 = m.student(x, t_g, prompts)
        case.compare(x_0.detach(), DOUBLE, f"{part}.model_latents")
        step = tdm.jump(m.table, x, x_0.detach(), t_g, t_m, t, z)
        case.compare(step.x_t, DOUBLE, f"{part}.noisy_model_latents")
        fake = m.critic(step.x_t, t, prompts)
        case.compare(fake, DOUBLE, f"{part}.fake_latents")
        return x_0, step, fake, t, z

    x_0, step, fake, t, z = jumped("critic")
    case.compare(step.x_m, DOUBLE, "critic.noisy_model_latents_ode")
    case.compare(step.e, DOUBLE, "critic.mixed_noise")
    case.compare(tdm.importance(step.e, z).flatten(), DOUBLE, "critic.is_weight")
    case.compare(tdm.critic_loss(m.table, x_0.detach(), fake, t, step.e, z), SINGLE, "critic.loss_score")

    x_0, step, fake, t, z = jumped("student")
    wanted, unwanted = (m.teacher(step.x_t, t, p) for p in (prompts, torch.full_like(prompts, EMPTY)))
    case.compare(wanted, DOUBLE, "student.sd_latents")
    case.compare(unwanted, DOUBLE, "student.sd_latents_uncond")
    real = guided(m.teacher, step.x_t, t, prompts, s["cfg"])
    case.compare(x_0.detach() + real - fake, DOUBLE, "student.coop_samples")
    case.compare(tdm.per_sample((x_0.detach() - real).abs()), DOUBLE, "student.weighting_factor")
    loss = tdm.student_loss(x_0, real, fake, objective.huber)
    case.compare(loss.detach(), SINGLE, "student.loss")
    case.compare(torch.autograd.grad(loss, m.theta)[0], SINGLE, "student.grad_theta")


def run_dmd2(case):
    s, m = case.set, Models(case)
    x, t, z = case["x"], case["t"], case["z"]
    prompts = m.prompts[: len(x)]
    x_0 = m.student(x, torch.full((len(x),), s["student_time"]), prompts)
    case.compare(x_0.detach(), DOUBLE, "D")
    x_t = dmd2.renoised(m.table, x_0.detach(), t, z)
    case.compare(x_t, SINGLE, "x_t")
    real, fake = guided(m.teacher, x_t, t, prompts, s["cfg"]), m.critic(x_t, t, prompts)
    case.compare(real, SINGLE, "real")
    case.compare(fake, SINGLE, "fake")
    gradient = dmd2.matching_gradient(x_0.detach(), real, fake)
    case.compare(gradient, SINGLE, "grad")
    loss = dmd2.student_loss(x_0, gradient)
    case.compare(loss.detach(), SINGLE, "loss")
    case.compare(torch.autograd.grad(loss, m.theta)[0], SINGLE, "grad_theta")


def run_preference(case):
    s, m = case.set, Models(case)
    t, t_next = case["t"], case["t_next"]
    prompts = m.prompts[: len(t)]
    found = []
    for side in ("win", "lose"):
        x, x_next = case[f"{side}.x_t"], case[f"{side}.x_next"]
        for model, key in ((m.student, "logp"), (m.teacher, "logp_ref")):
            x_0 = model(x, t, prompts)
            if s["method"] == "PSO":
                mean, std = preference.renoise_step(m.table, x_0, t_next)
            else:
                mean, std = preference.ddim_posterior(m.table, x, x_0, t, t_next)
            found.append(preference.log_prob(x_next, mean, std))
            case.compare(found[-1].detach(), DOUBLE, f"{side}.{key}")
    loss = preference.preference_loss(*found, beta=s["beta"], clip=s["clip"])
    case.compare(loss.detach(), DOUBLE, "loss")
    case.compare(torch.autograd.grad(loss, m.theta)[0], DOUBLE, "grad_theta")

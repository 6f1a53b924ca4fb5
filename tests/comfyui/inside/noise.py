"""Stochastic solvers: places in a batch, and schedules in parts."""

import torch
from hosted import Pack, difference, noise_like, sample, start_host

STOCHASTIC = {
    "ddim eta 1": ("FewStepDDIM", {"eta": 1.0}),
    "sde multistep 2": ("FewStepDPMSolverSDE", {}), "sde multistep 3": ("FewStepDPMSolverSDE", {"order": 3}),
    "sa": ("FewStepSASolver", {}),
    "sde singlestep": ("FewStepDPMSolverSDE", {"method": "singlestep"}),
}
ONE_STEP = ("ddim eta 1", "sde singlestep")  # no past: a run in parts is the whole run


def cases():
    """(name, run(sigmas, latent, noise), sigmas of so many steps)."""
    start_host()
    torch.set_num_threads(1)
    pack = Pack()
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        for name, (node, options) in STOCHASTIC.items():
            solver = pack.solver(node, **options)

            def run(sigmas, latent, noise, model=model, conds=conds, solver=solver):
                return sample(model, *conds, solver, sigmas, latent, noise, 2.0)

            yield f"{form} {name}", run, lambda steps, model=model: pack.sigmas(model, "karras", steps)


def batches():
    """How far a sample of a batch of 1 or 2 is from itself in a batch of 5, and how far samples are from one another."""
    out = {}
    for name, run, schedule in cases():
        sigmas, latent = schedule(8), torch.zeros(5, 4, 8, 8)
        noise = noise_like(latent)
        whole, twins = run(sigmas, latent, noise), run(sigmas, latent[:2], noise[:1].expand(2, -1, -1, -1))
        out[name] = {
            "same": max(difference(run(sigmas, latent[:n], noise[:n]), whole[:n]) for n in (1, 2)),
            "again": bool(torch.equal(whole, run(sigmas, latent, noise))), "twins": difference(*twins.chunk(2)),
        }
    return out


def parts():
    """How far a run in two parts is from the whole one, with few steps and with many."""
    out = {}
    for name, run, schedule in cases():
        latent = torch.zeros(2, 4, 8, 8)
        noise = noise_like(latent)
        found = {}
        for steps in (8, 64):
            sigmas, cut = schedule(steps), steps // 2
            rest = run(sigmas[cut:], run(sigmas[: cut + 1], latent, noise), torch.zeros_like(noise))
            whole = run(sigmas, latent, noise)
            found[steps] = float((rest - whole).abs().mean() / whole.abs().mean())
        out[name] = {"few": found[8], "many": found[64], "one step": name.split(" ", 1)[1] in ONE_STEP}
    return out

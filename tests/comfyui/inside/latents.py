"""Masks, img2img, slices and batches."""

import torch
from hosted import LATENT, SOLVERS, Pack, difference, noise_like, sample, start_host, stock


def given_latents():
    start_host()
    pack, out = Pack(), {"mask": {}, "img2img": {}, "slices": {}, "batch": {}}
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        sigmas, noise = pack.sigmas(model, "uniform_t", 6), noise_like(LATENT)
        picture = sample(model, *conds, pack.solver("FewStepUniPC"), sigmas, LATENT, noise_like(LATENT, 8), 2.0)
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., 2:6, 3:7] = 1
        kept = (mask == 0).expand(picture.shape)
        for node, options in SOLVERS.items():
            result = sample(model, *conds, pack.solver(node, **options), sigmas, picture, noise, 2.0, noise_mask=mask)
            out["mask"][f"{form} {node}"] = {
                "kept": float((result - picture)[kept].abs().max()), "changed": float((result - picture)[~kept].abs().mean())}

        half = pack.sigmas(model, "uniform_t", 6, 0.5)
        near = sample(model, *conds, pack.solver("FewStepUniPC"), half, picture, noise, 2.0)
        far = sample(model, *conds, pack.solver("FewStepUniPC"), sigmas, picture, noise, 2.0)
        ours, theirs = (sample(model, *conds, s, half, picture, noise, 2.0) for s in (pack.solver("FewStepDDIM"), stock("euler")))
        full = pack.sigmas(model, "uniform_t", 12)
        out["img2img"][form] = {
            "steps": len(half) - 1, "tail": bool(torch.equal(half, full[-7:])), "euler": difference(ours, theirs),
            "near": float((near - picture).abs().mean()), "far": float((far - picture).abs().mean()),
            "finite": bool(torch.isfinite(near).all())}

        ddim = pack.solver("FewStepDDIM")
        whole = sample(model, *conds, ddim, sigmas, LATENT, noise, 2.0)
        first = sample(model, *conds, ddim, sigmas[:4], LATENT, noise, 2.0)
        second = sample(model, *conds, ddim, sigmas[3:], first, torch.zeros_like(noise), 2.0)
        out["slices"][form] = difference(second, whole)
        for node, options in SOLVERS.items():  # the same slices through every solver: no fault, finite
            part = sample(model, *conds, pack.solver(node, **options), sigmas[:4], LATENT, noise, 2.0)
            rest = sample(model, *conds, pack.solver(node, **options), sigmas[3:], part, torch.zeros_like(noise), 2.0)
            out["slices"][f"{form} {node}"] = bool(torch.isfinite(rest).all() and rest.std() > 0)

        three = torch.zeros(3, 4, 8, 8)
        noises = noise_like(three)
        for node in ("FewStepDDIM", "FewStepDPMSolverMultistep", "FewStepUniPC", "FewStepDEIS", "FewStepIPNDM"):
            solver = pack.solver(node, **SOLVERS[node])
            together = sample(model, *conds, solver, sigmas, three, noises, 2.0)
            alone = torch.cat([sample(model, *conds, solver, sigmas, three[:1], noises[i : i + 1], 2.0) for i in range(3)])
            out["batch"][f"{form} {node}"] = difference(alone, together)
    return out

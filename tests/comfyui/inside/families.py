"""Every model family through the pack's nodes."""

import torch
from hosted import SOLVERS, Pack, difference, noise_like, sample, start_host, stock
from model_zoo import conditioning, family_models, packed

EVERY_SOLVER = ("sd15", "flux", "wan", "audio", "sd15 v zsnr", "sd15 continuous edm")


def families():
    start_host()
    torch.set_num_threads(1)  # the networks are tiny
    pack, out = Pack(), {}
    kinds = pack.part("nodes.schedule").KINDS
    frame_of = pack.part("nodes.frames").frame_of
    for name, (model, conds, latent) in family_models().items():
        sampling = model.get_model_object("model_sampling")
        frame, sigmas, noise = frame_of(sampling), pack.sigmas(model), noise_like(latent)
        found = out[name] = {
            "scaling": frame.scaling, "time": type(frame.time).__name__, "model_time": bool(frame.time.is_model_time),
            "sigmas": sigmas.tolist(), "sigma_max": float(sampling.sigma_max), "shape": list(latent.shape), "solvers": {},
        }
        if found["time"] == "DiscreteTime":
            table = sampling.sigmas
            found["time_error"] = max(
                abs(float(frame.sigma((i + 1) / len(table))) / float(table[i]) - 1) for i in range(0, len(table), 7))
        usable = [kind for kind in kinds if kind != "shifted" or frame.time.t_max == 1.0]  # a shift needs a time from 0 to 1
        found["schedules"] = {kind: pack.sigmas(model, kind).tolist() for kind in usable}
        inner = pack.sigmas(model, "uniform_t", 8)[:-1]
        found["network_times"] = [float(t) for t in sampling.timestep(inner)]
        for node, options in SOLVERS.items():
            if name not in EVERY_SOLVER and node not in ("FewStepDDIM", "FewStepUniPC"):
                continue
            seen = []
            result = sample(model, *conds, pack.solver(node, **options), sigmas, latent, noise, 3.0,
                            callback=lambda i, denoised, x, total, seen=seen: seen.append((i, list(denoised.shape), total)))
            found["solvers"][node] = {
                "shape": list(result.shape), "finite": bool(torch.isfinite(result).all()), "steps": [i for i, _, _ in seen],
                "seen": [list(s) for s in {tuple(shape) for _, shape, _ in seen}], "totals": sorted({t for _, _, t in seen})}
            if node == "FewStepDDIM":
                found["euler"] = difference(result, sample(model, *conds, stock("euler"), sigmas, latent, noise, 3.0))
    return out


def nested():
    start_host()
    import comfy.nested_tensor
    import comfy.utils

    pack, model = Pack(), packed()
    parts = [torch.zeros(2, 4, 3, 4, 4), torch.zeros(2, 2, 30)]
    size = sum(p[0].numel() for p in parts)
    noises = [noise_like(p, 3 + i) for i, p in enumerate(parts)]

    class Nested(comfy.nested_tensor.NestedTensor):
        def clone(self):
            return Nested([t.clone() for t in self.tensors])

    out, sigmas = {"packed": [2, 1, size]}, pack.sigmas(model)
    for node, options in SOLVERS.items():
        seen = []
        result = sample(model, *conditioning(), pack.solver(node, **options), sigmas, Nested(parts), Nested(noises), 3.0,
                        callback=lambda i, denoised, x, total, seen=seen: seen.append(list(denoised.shape)))
        out[node] = {"shapes": [list(t.shape) for t in result.unbind()], "seen": [list(s) for s in {tuple(s) for s in seen}],
                     "finite": all(bool(torch.isfinite(t).all()) for t in result.unbind())}
        if node == "FewStepDDIM":
            theirs = sample(model, *conditioning(), stock("euler"), sigmas, Nested(parts), Nested(noises), 3.0)
            out["euler"] = max(difference(a, b) for a, b in zip(result.unbind(), theirs.unbind(), strict=True))
    return out

"""The Teleport node before ComfyUI's own samplers."""

import tempfile
from pathlib import Path

import torch
from hosted import LATENT, Pack, difference, noise_like, sample, start_host, stock
from model_zoo import conditioning, family_models, packed

NAMES = (
    "euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "uni_pc", "ddim", "lms", "res_multistep", "dpm_fast", "dpm_adaptive",
)


def measured(pack, folder, latents, name, **options):
    """Moments of given latents, in a file as the loader gives it."""
    store, moments = pack.part("samplers.calibration.store"), pack.part("samplers.calibration.moments")
    store.add_folder(folder)
    made = moments.from_latents([latents], **options)
    return pack.part("nodes.calibration").CalibrationInput(store.save(made, Path(folder) / f"{name}.safetensors"), made)


def measured_inside(pack, folder, model, conds, name):
    """Moments and range of the model by its own denoiser, inside the host's sampling."""
    store, moments = pack.part("samplers.calibration.store"), pack.part("samplers.calibration.moments")
    found = []

    def work(session):
        where = (session.denoiser, session.frame)
        made = moments.from_denoiser(*where, session.like, samples=32)
        found.append(moments.measure_range(*where, made, session.like, samples=4, steps=24))

    with torch.inference_mode():
        pack.part("nodes.inside").work_inside(model, *conds, 1.0, {"samples": torch.zeros(4, 4, 8, 8)}, 0, work)
    store.add_folder(folder)
    return pack.part("nodes.calibration").CalibrationInput(store.save(found[0], Path(folder) / f"{name}.safetensors"), found[0])


def settings(pack, **changes):
    known = pack.nodes["FewStepTeleport"].INPUT_TYPES()["required"].items()
    return {n: e[1]["default"] for n, e in known if "default" in e[1]} | changes


def jumps():
    start_host()
    pack, out = Pack(), {"stock": {}, "ours": {}}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("eps", "flow"):
            model, *conds = pack.demo(form)
            noise = noise_like(LATENT)
            fine = sample(model, *conds, stock("euler"), pack.sigmas(model, "uniform_t", 300), LATENT, noise)
            moments = measured_inside(pack, folder, model, conds, form)
            out.setdefault("range", {})[form] = moments.calibration.meta["range"]
            sigmas, reference = pack.sigmas(model, "uniform_t", 8), {}
            for name in NAMES:
                seen = []
                jumping = pack.run("FewStepTeleport", stock(name), moments, **settings(pack))[0]
                result = sample(model, *conds, jumping, sigmas, LATENT, noise, callback=lambda i, d, x, t, seen=seen: seen.append((i, t)))
                again = sample(model, *conds, jumping, sigmas, LATENT, noise)
                plain = sample(model, *conds, stock(name), sigmas, LATENT, noise)
                reference[name] = difference(plain, fine)
                out["stock"][f"{form} {name}"] = {
                    "error": difference(result, fine), "plain": reference[name], "last": seen[-1], "rising": seen == sorted(seen),
                    "first": seen[0][0], "same": bool(torch.equal(result, again)), "finite": bool(torch.isfinite(result).all()),
                    "stochastic": name in ("dpmpp_2m_sde", "dpmpp_sde"),
                }
            jumping = pack.run("FewStepTeleport", pack.solver("FewStepDDIM"), moments, **settings(pack))[0]
            ours = sample(model, *conds, jumping, sigmas, LATENT, noise)
            jumping = pack.run("FewStepTeleport", stock("euler"), moments, **settings(pack))[0]
            out["ours"][form] = difference(ours, sample(model, *conds, jumping, sigmas, LATENT, noise))
            mask, picture = torch.zeros(1, 8, 8), noise_like(LATENT, 9) * 0.5
            mask[..., 4:] = 1
            kept = sample(model, *conds, jumping, sigmas, picture, noise, noise_mask=mask)
            out["ours"][f"{form} mask"] = difference(kept[..., :4], picture[..., :4])
        families = family_models()
        video, conds, latent = families["wan"]
        moments = measured(pack, folder, torch.randn(24, *latent.shape[1:]), "video")
        jumping = pack.run("FewStepTeleport", stock("dpmpp_2m"), moments, **settings(pack))[0]
        result = sample(video, *conds, jumping, pack.sigmas(video), latent, noise_like(latent), 3.0)
        out["video"] = [list(result.shape), bool(torch.isfinite(result).all())]
        moments = measured(pack, folder, torch.randn(24, 64, 40), "audio")
        sound, conds, latent = families["audio"]
        jumping = pack.run("FewStepTeleport", pack.solver("FewStepUniPC"), moments, **settings(pack))[0]
        out["audio"] = bool(torch.isfinite(sample(sound, *conds, jumping, pack.sigmas(sound), latent, noise_like(latent), 3.0)).all())
        out["packed"] = refused(pack, moments)
    return out


def refused(pack, moments):
    """What a state of two nested latents says."""
    import comfy.nested_tensor

    class Nested(comfy.nested_tensor.NestedTensor):
        def clone(self):
            return Nested([t.clone() for t in self.tensors])

    model, parts = packed(), [torch.zeros(2, 4, 3, 4, 4), torch.zeros(2, 2, 30)]
    jumping = pack.run("FewStepTeleport", stock("euler"), moments, **settings(pack))[0]
    try:
        sample(model, *conditioning(), jumping, pack.sigmas(model), Nested(parts), Nested([noise_like(p) for p in parts]), 3.0)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "sampled"

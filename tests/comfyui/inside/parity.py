"""Stock samplers against the pack's equivalents."""

from hosted import LATENT, Pack, difference, noise_like, sample, start_host, stock


def parity():
    start_host()
    pack, out = Pack(), {}
    noise = noise_like(LATENT)
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        for kind, end in (("uniform_t", "zero"), ("karras", "zero"), ("quadratic_t", "stop")):
            sigmas = pack.run("FewStepSchedule", model, kind, 8, 1.0, end=end)[0]
            for cfg in (1.0, 4.0):
                def both(ours, theirs, levels, model=model, conds=conds, cfg=cfg):
                    return difference(*(sample(model, *conds, s, levels, LATENT, noise, cfg) for s in (ours, stock(theirs))))

                out[f"{form} {kind} cfg {cfg:g} euler"] = both(pack.solver("FewStepDDIM"), "euler", sigmas)
                multistep = pack.solver("FewStepDPMSolverMultistep", order=2, lower_order_final="never")
                estimated = pack.solver("FewStepGradientEstimation")
                deis = pack.solver("FewStepDEIS", basis="linear_t", ab_order=2)
                if form == "flow":
                    ipndm = pack.solver("FewStepIPNDM", order=4)
                    for solver, name in (
                        (multistep, "dpmpp_2m"), (ipndm, "ipndm"), (estimated, "gradient_estimation"), (deis, "deis"),
                    ):
                        clocked = pack.run("FewStepSigmaClock", solver)[0]
                        out[f"{form} {kind} cfg {cfg:g} clocked {name}"] = both(clocked, name, sigmas)
                    continue
                out[f"{form} {kind} cfg {cfg:g} dpmpp_2m"] = both(multistep, "dpmpp_2m", sigmas)
                out[f"{form} {kind} cfg {cfg:g} gradient_estimation"] = both(estimated, "gradient_estimation", sigmas)
                out[f"{form} {kind} cfg {cfg:g} deis"] = both(deis, "deis", sigmas)
                for variant, name in (("bh1", "uni_pc"), ("bh2", "uni_pc_bh2")):
                    unipc = pack.solver("FewStepUniPC", order=3, variant=variant, lower_order_final=True)
                    out[f"{form} {kind} cfg {cfg:g} {name}"] = both(unipc, name, sigmas[:-1] if end == "zero" else sigmas)
    return out


def beta_schedules():
    """Model times of the pack's beta steps and of the host's own node."""
    start_host()
    from comfy_extras.nodes_custom_sampler import BetaSamplingScheduler

    pack, out = Pack(), {}
    for form in ("eps", "flow"):
        model = pack.demo(form)[0]
        sampling = model.get_model_object("model_sampling")
        for alpha, beta in ((0.6, 0.6), (0.5, 0.7), (0.9, 0.8)):
            ours = pack.run("FewStepBetaSchedule", model, 8, 1.0, alpha=alpha, beta=beta)[0]
            theirs = BetaSamplingScheduler.execute(model, 8, alpha, beta).result[0]
            times = [[float(sampling.timestep(s)) for s in sigmas[:-1]] for sigmas in (ours, theirs)]
            out[f"{form} {alpha:g} {beta:g}"] = {"times": times, "ends": [float(ours[-1]), float(theirs[-1])]}
    return out

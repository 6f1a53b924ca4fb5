"""ComfyUI's modules and the pack, in one process without a server; the folder's other files hold the checks."""

import importlib
import importlib.util
import logging
import sys
import tempfile
from pathlib import Path

import torch
from torchvision_operators import provide

ROOT = Path(__file__).resolve().parents[3]
LATENT = torch.zeros(2, 4, 8, 8)
SOLVERS = {
    "FewStepDDIM": {}, "FewStepDPMSolverMultistep": {}, "FewStepDPMSolverSinglestep": {},
    "FewStepDPMSolverAdaptive": {"rtol": 0.5, "atol": 0.5}, "FewStepDPMSolverSDE": {}, "FewStepSASolver": {}, "FewStepUniPC": {},
    "FewStepDEIS": {"basis": "log_rho"}, "FewStepDEISRungeKutta": {}, "FewStepIPNDM": {"order": 3},
}


def start_host():
    """ComfyUI's modules as its main.py has them when it loads packs, on the CPU."""
    provide()
    sys.path.insert(0, str(Path.cwd()))
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.samplers

    import nodes  # noqa: F401
    logging.getLogger().setLevel(logging.ERROR)


def load_folder(folder):
    """A folder as a pack, under the module name that ComfyUI gives it."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, Path(folder) / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Pack:
    """The pack under a folder name with a dash and a dot."""

    def __init__(self, folder_name="few-step.pack"):
        self.holder = tempfile.TemporaryDirectory()
        folder = Path(self.holder.name) / folder_name
        folder.symlink_to(ROOT)
        self.module = load_folder(folder)
        self.nodes = self.module.NODE_CLASS_MAPPINGS

    def part(self, name):
        return importlib.import_module(f"{self.module.__name__}.{name}")

    def run(self, node, *args, **widgets):
        cls = self.nodes[node]
        return getattr(cls(), cls.FUNCTION)(*args, **widgets)

    def solver(self, node, **changes):
        """The SAMPLER of a solver node, every other widget at its default."""
        values = {}
        for inputs in self.nodes[node].INPUT_TYPES().values():
            for label, (kind, *options) in inputs.items():
                settings = options[0] if options else {}
                values[label] = settings.get("default", kind[0] if isinstance(kind, list) else None)
        return self.run(node, **{**values, **changes})[0]

    def sigmas(self, model, kind="uniform_t", steps=6, denoise=1.0):
        return self.run("FewStepSchedule", model, kind, steps, denoise)[0]

    def demo(self, form):
        model, clip, _ = self.run("FewStepDemoCheckpoint", form)
        conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("3", "")]
        return model, *conds


def sample(model, positive, negative, sampler, sigmas, latent, noise, cfg=1.0, **more):
    import comfy.sample

    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise.clone(), cfg, sampler, sigmas.clone(), positive, negative, latent.clone(), disable_pbar=True,
            seed=7, **more)


def stock(name):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def difference(a, b):
    """Largest absolute difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def noise_like(latent, seed=3):
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))

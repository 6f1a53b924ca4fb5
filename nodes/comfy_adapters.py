"""ComfyUI's LoRA machinery: its key maps, weight adapters, hooks and wrappers; and its model folders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import HostError

if TYPE_CHECKING:
    from ..samplers.adapters import Patch, Targets
    from ..samplers.adapters.forward import ForwardAdditions

_count = itertools.count()


class ComfyFiles:
    """``folder_paths``; the demo model's LoRAs stand in the list too."""

    def names(self, kind: str) -> list[str]:
        """See ``HostFiles``."""
        import folder_paths

        add_shipped_loras()
        return list(folder_paths.get_filename_list(kind))

    def path(self, kind: str, name: str) -> Path:
        """See ``HostFiles``."""
        import folder_paths

        add_shipped_loras()
        return Path(folder_paths.get_full_path_or_raise(kind, name))

    def folders(self, kind: str) -> list[Path]:
        """See ``HostFiles``."""
        import folder_paths

        return [Path(path) for path in folder_paths.get_folder_paths(kind)]


def add_shipped_loras() -> None:
    """Makes the folder with the demo model's LoRAs one of ComfyUI's, last in the list; once."""
    import folder_paths

    from .demo_parts import LORAS

    if LORAS.is_dir():
        folder_paths.add_model_folder_path("loras", str(LORAS))


class ComfyAdapters:
    """See ``HostAdapters``."""

    def targets(self, model: Any) -> Targets:
        """The names of ``comfy.lora.model_lora_keys_unet``."""
        import comfy.lora

        return _targets(model, comfy.lora.model_lora_keys_unet(model.model, {}))

    def text_targets(self, clip: Any) -> Targets:
        """The names of ``comfy.lora.model_lora_keys_clip``; none for a CLIP without weights (the demo's)."""
        import comfy.lora

        from ..samplers.adapters import Targets

        if not hasattr(clip, "patcher"):
            return Targets({}, {}, lambda key: None)  # type: ignore[arg-type, return-value]
        return _targets(clip.patcher, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))

    def patch(self, model: Any, patches: Sequence[Patch], strength: float) -> Any:
        """``ModelPatcher.add_patches`` with the host's weight adapters."""
        changed = model.clone()
        for loaded in _weight_adapters(patches):
            done = changed.add_patches(loaded, strength)
            if set(done) != set(loaded):
                lost = ", ".join(str(key) for key in list(set(loaded) - set(done))[:5])
                raise HostError(f"ComfyUI did not take the patches of {lost}: it has no such weights")
        return changed

    def patch_text(self, clip: Any, patches: Sequence[Patch], strength: float) -> Any:
        """The same on the CLIP's patcher."""
        changed = clip.clone()
        for loaded in _weight_adapters(patches):
            changed.add_patches(loaded, strength)
        return changed

    def add_while_running(self, model: Any, additions: ForwardAdditions) -> Any:
        """A wrapper around every ``apply_model``; the additions' weights are a model of their own to the memory management."""
        from comfy.model_patcher import ModelPatcher
        from comfy.patcher_extension import WrappersMP

        changed, key = model.clone(), f"fewstep_additions_{next(_count)}"

        def wrapper(executor: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
            with additions.attached(executor.class_obj.diffusion_model, t):
                return executor(x, t, *args, **kwargs)

        changed.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, wrapper)
        changed.set_additional_models(key, [ModelPatcher(additions, model.load_device, model.offload_device)])
        return changed

    def rebuild_over_steps(
        self, conditionings: Sequence[Any], parts: Sequence[tuple[Sequence[Patch], Sequence[tuple[float, float]]]]
    ) -> list[Any]:
        """Weight hooks with keyframes, on every CONDITIONING alike."""
        import comfy.hooks as hooks

        group = hooks.HookGroup()
        for patches, keyframes in parts:
            frames = hooks.HookKeyframeGroup()
            for start, strength in keyframes:  # switched by noise level alone: no guaranteed evaluations
                frames.add(hooks.HookKeyframe(strength=strength, start_percent=start, guarantee_steps=0))
            for loaded in _weight_adapters(patches):
                hook = hooks.WeightHook()
                hook.weights, hook.weights_clip, hook.need_weight_init = loaded, {}, False
                hook.hook_keyframe = frames
                group.add(hook)
        return [hooks.set_hooks_for_conditioning(conditioning, group) for conditioning in conditionings]

    def predict_x_0(self, model: Any) -> Any:
        """As the stock ModelSamplingDiscrete node with x0, on the model's own noise levels."""
        import comfy.model_sampling as sampling

        class X0Sampling(sampling.ModelSamplingDiscrete, sampling.X0):  # type: ignore[misc]
            pass

        own = X0Sampling(model.model.model_config)
        own.set_sigmas(model.get_model_object("model_sampling").sigmas)
        changed = model.clone()
        changed.add_object_patch("model_sampling", own)
        return changed


def additions_of(model: Any) -> list[ForwardAdditions]:
    """What ``add_while_running`` has put on a MODEL, oldest first."""
    from ..samplers.adapters.forward import ForwardAdditions

    added = [patcher.model for group in getattr(model, "additional_models", {}).values() for patcher in group]
    return [part for part in added if isinstance(part, ForwardAdditions)]


def _targets(patcher: Any, names: Mapping[str, Any]) -> Targets:
    import comfy.lora_convert
    import torch

    from ..samplers.adapters import Targets

    state = patcher.model_state_dict()

    def base(key: str) -> torch.Tensor:
        weight, convert = patcher.get_key_patches(key)[key][0]  # the one that was backed up, if others are merged in
        return torch.as_tensor(convert(weight.to("cpu", torch.float32, copy=True), inplace=True)).float()

    return Targets(
        names, {key: tuple(value.shape) for key, value in state.items()}, base,
        {key: value.dtype for key, value in state.items()}, lambda tensors: comfy.lora_convert.convert_lora(dict(tensors)),
    )


def _weight_adapters(patches: Sequence[Patch]) -> list[dict[Any, Any]]:
    """What ``add_patches`` takes, made by ``comfy.lora.load_lora``: a dictionary for every round of patches.

    Raises HostError where this ComfyUI knows no weight adapter of a kind.
    """
    import comfy.lora

    from ..samplers.adapters import rounds

    found = []
    for group in rounds(patches):
        names = {f"{i}:{patch.name}": patch.target for i, patch in enumerate(group)}
        tensors = {f"{i}:{patch.name}.{role}": t for i, patch in enumerate(group) for role, t in patch.tensors.items()}
        loaded = comfy.lora.load_lora(tensors, names, log_missing=False)
        unknown = {patch.kind for patch in group if patch.target not in loaded}
        if unknown:
            raise HostError(f"this ComfyUI has no weight adapter for {', '.join(sorted(unknown))}: update it")
        found.append(loaded)
    return found

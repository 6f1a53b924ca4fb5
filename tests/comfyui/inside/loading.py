"""The pack beside others, and what loading it costs."""

import sys
import tempfile
import time
from pathlib import Path

import torch
from hosted import LATENT, Pack, load_folder, noise_like, sample, start_host


def neighbours():
    start_host()
    import nodes as host_nodes

    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other-pack"
        for sub in ("nodes", "samplers", "demo"):
            (other / sub).mkdir(parents=True)
            (other / sub / "__init__.py").write_text(f"WHO = 'other {sub}'\nfrom . import frames\n")
            (other / sub / "frames.py").write_text("def frame_of(m):\n    return 'other'\n")
        (other / "__init__.py").write_text(
            "from . import demo, nodes, samplers\nclass Other: pass\nNODE_CLASS_MAPPINGS = {'OtherNode': Other}\n")
        first = load_folder(other)
        path = list(sys.path)
        pack = Pack()
        second = load_folder(other)
        import nodes

        model, *conds = pack.demo("flow")
        result = sample(model, *conds, pack.solver("FewStepUniPC"), pack.sigmas(model), LATENT, noise_like(LATENT))
        return {
            "host_nodes": nodes is host_nodes and hasattr(nodes, "KSampler"), "path": sys.path == path,
            "others": [m.nodes.WHO == "other nodes" and m.samplers.WHO == "other samplers" and
                       m.nodes.frames.frame_of(0) == "other" for m in (first, second)],
            "ours": pack.part("nodes.frames").frame_of.__module__.endswith("few-step_x_pack.nodes.frames"),
            "top_level": [n for n in ("samplers", "demo", "host", "fewstep") if n in sys.modules],
            "finite": bool(torch.isfinite(result).all()), "nodes": len(pack.nodes),
        }


def timed_load():
    before, began = set(sys.modules), time.process_time()
    pack = Pack()
    inputs = [node.INPUT_TYPES() for node in pack.nodes.values()]
    seconds = time.process_time() - began
    new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
    return {"seconds": seconds, "new": sorted(n for n in new if not n.endswith("few-step_x_pack")), "nodes": len(inputs)}


def in_host():
    start_host()
    return timed_load()


def alone():
    """With nothing but torch: what the host has imported already hides what the pack imports."""
    return timed_load()

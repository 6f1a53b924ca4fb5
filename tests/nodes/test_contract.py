"""What saved workflows and the host's frontend rely on."""

import subprocess
import sys
from pathlib import Path

import fewstep
import pytest
from fewstep import nodes
from fewstep.nodes.host import HostError, get_host, set_host
from fewstep.samplers import grids, solver_names, solver_options

# node id -> (inputs, outputs). Ids, names and order are saved in workflows: only add, at the end.
CONTRACT = {
    "FewStepDemoCheckpoint": ("form", "MODEL CLIP VAE"),
    "FewStepDDIM": ("prediction eta s_noise", "SAMPLER"),
    "FewStepDPMSolverMultistep": ("order prediction solver_type lower_order_final thresholding", "SAMPLER"),
    "FewStepDPMSolverSinglestep": ("order prediction solver_type allocation inner thresholding", "SAMPLER"),
    "FewStepDPMSolverAdaptive": ("order prediction solver_type atol rtol h_init theta thresholding", "SAMPLER"),
    "FewStepDPMSolverSDE": ("method order eta s_noise solver_type r", "SAMPLER"),
    "FewStepSASolver": (
        "predictor_order corrector_order tau sde_start sde_end s_noise simple_order_2 lower_order_final", "SAMPLER"),
    "FewStepUniPC": ("order variant prediction lower_order_final corrector disable_corrector thresholding", "SAMPLER"),
    "FewStepDEIS": ("basis ab_order", "SAMPLER"),
    "FewStepDEISRungeKutta": ("tableau", "SAMPLER"),
    "FewStepIPNDM": ("order", "SAMPLER"),
    "FewStepDPMSolverV3": (
        "order corrector lower_order_final s_max per_channel p_pseudo c_pseudo snap quadrature statistics", "SAMPLER"),
    "FewStepShowStatistics": ("statistics", "IMAGE STRING"),
    "FewStepOfficialStatistics": ("model folder", "FEWSTEP_CALIBRATION"),
    "FewStepDynamicCompensation": ("sampler dc_order ratios guidance calibration", "SAMPLER"),
    "FewStepDualFast": ("sampler c_max c_min schedule tau scope skip_last", "SAMPLER"),
    "FewStepUniC": ("sampler order variant disable", "SAMPLER"),
    "FewStepTeleport": ("sampler moments mode skip sigma_skip fraction rest start guidance_scale", "SAMPLER"),
    "FewStepSchedule": ("model kind steps denoise shift rho end start alpha beta", "SIGMAS"),
    "FewStepKSampler": (
        "model positive negative latent_image seed steps cfg solver schedule denoise sampler sigmas", "LATENT"),
    "FewStepUniformTimeSchedule": ("model steps denoise end", "SIGMAS"),
    "FewStepUniformLambdaSchedule": ("model steps denoise end", "SIGMAS"),
    "FewStepQuadraticTimeSchedule": ("model steps denoise end", "SIGMAS"),
    "FewStepKarrasSchedule": ("model steps denoise rho end", "SIGMAS"),
    "FewStepExponentialSchedule": ("model steps denoise end", "SIGMAS"),
    "FewStepEDMSchedule": ("model steps denoise rho end", "SIGMAS"),
    "FewStepBetaSchedule": ("model steps denoise end start alpha beta", "SIGMAS"),
    "FewStepShiftedSchedule": ("model steps denoise shift end", "SIGMAS"),
    "FewStepPlanInspector": ("model sampler sigmas", "IMAGE STRING"),
    "FewStepAdvisor": ("model steps cfg distilled use_calibrations", "SAMPLER SIGMAS FLOAT STRING"),
    "FewStepConsistency": ("method gamma start s_noise", "SAMPLER"),
    "FewStepLoadDistilledLoRA": (
        "model lora_name strength preset clip steps cfg shift sampler gamma times denoise scale allow_partial",
        "MODEL CLIP SAMPLER SIGMAS FLOAT INT STRING"),
    "FewStepDistilledPreset": ("model preset steps cfg shift sampler gamma times denoise", "MODEL SAMPLER SIGMAS FLOAT INT STRING"),
    "FewStepLoadRoutedAdapter": ("model lora_name task strength allow_unknown_task", "MODEL STRING"),
    "FewStepLoRAOverSteps": (
        "model lora_name sigmas strengths second_lora second_strengths positive negative method", "MODEL CONDITIONING CONDITIONING STRING"),
}
CLASSES = nodes.NODE_CLASS_MAPPINGS
SOCKETS = {"CLIP", "FEWSTEP_CALIBRATION", "MODEL", "CONDITIONING", "LATENT", "SAMPLER", "SIGMAS", "VAE"}


def entries(node):
    types = node.INPUT_TYPES()
    assert set(types) <= {"required", "optional", "hidden"}
    return {**types["required"], **types.get("optional", {})}


def test_ids_inputs_and_outputs_are_the_saved_ones():
    found = {i: (" ".join(entries(c)), " ".join(c.RETURN_TYPES)) for i, c in CLASSES.items()}
    assert {i: found.get(i) for i in CONTRACT} == CONTRACT


@pytest.mark.parametrize("node_id", list(CLASSES))
def test_every_node_explains_itself(node_id):
    node = CLASSES[node_id]
    assert node.CATEGORY.split("/")[0] == "FewStep"
    assert len(node.DESCRIPTION) > 40
    assert node.SEARCH_ALIASES and all(isinstance(alias, str) for alias in node.SEARCH_ALIASES)
    assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
    assert callable(getattr(node, node.FUNCTION))
    assert fewstep.NODE_DISPLAY_NAME_MAPPINGS[node_id].endswith("(FewStep)")
    for name, (kind, settings) in entries(node).items():
        assert len(settings["tooltip"]) > 10, name
        if isinstance(kind, list):
            # what lies in a folder has no choice that is always there
            assert name in ("file", "folder", "lora_name") or settings["default"] in kind
        elif kind not in SOCKETS:
            assert kind in {"INT", "FLOAT", "BOOLEAN", "STRING"}
            assert "default" in settings
        if kind in ("INT", "FLOAT"):
            assert settings["min"] <= settings["default"] <= settings["max"]
        if kind == "FLOAT":
            assert (settings["step"], settings["round"]) == (0.001, False)  # 0.125 must stay 0.125


def test_display_names_are_unique():
    names = list(fewstep.NODE_DISPLAY_NAME_MAPPINGS.values())
    assert len(set(names)) == len(names) == len(CLASSES)


def test_defaults_and_choices_are_the_solvers_own():
    for node in CLASSES.values():
        if not hasattr(node, "SOLVER"):
            continue
        options = solver_options(node.SOLVER)
        for name, (kind, settings) in entries(node).items():
            if name in options and options[name].choices and name != "lower_order_final" and isinstance(kind, list):
                assert (tuple(kind), settings["default"]) == (options[name].choices, options[name].default)
            elif name in options and kind in ("INT", "FLOAT", "BOOLEAN"):
                assert settings["default"] == options[name].default
    simple = entries(CLASSES["FewStepKSampler"])
    assert simple["solver"] == (["auto", *solver_names()], {**simple["solver"][1], "default": "auto"})
    assert simple["schedule"] == (["auto", *grids.GRIDS], {**simple["schedule"][1], "default": "auto"})
    assert entries(CLASSES["FewStepSchedule"])["kind"][0] == list(grids.GRIDS), "auto is of the simple node alone"


def test_every_solver_has_a_node():
    named = {m for c in CLASSES.values() if hasattr(c, "SOLVER") for m in [c.SOLVER, *getattr(c, "METHODS", {}).values()]}
    assert named == set(solver_names())


def test_the_pack_loads_without_torch_and_quickly():
    code = """if True:
        import importlib.util, sys, time
        root = sys.argv[1]
        spec = importlib.util.spec_from_file_location("any_x_name", root + "/__init__.py", submodule_search_locations=[root])
        pack = importlib.util.module_from_spec(spec); sys.modules["any_x_name"] = pack
        start = time.process_time(); spec.loader.exec_module(pack)
        assert hasattr(pack, "NODE_CLASS_MAPPINGS") and hasattr(pack, "NODE_DISPLAY_NAME_MAPPINGS")
        assert pack.WEB_DIRECTORY == "./web" and not hasattr(pack, "comfy_entrypoint")
        heavy = {"torch", "numpy", "scipy", "matplotlib", "comfy", "nodes"} & set(sys.modules)
        assert not heavy, heavy
        assert time.process_time() - start < 0.2
        assert len(pack.NODE_CLASS_MAPPINGS) == int(sys.argv[2])
    """
    root = str(Path(fewstep.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, root, str(len(CLASSES))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_broken_module_costs_only_its_own_nodes(caplog):
    classes, names = nodes.collect(("no_such_module", "schedule"))
    assert list(classes) == list(names) == ["FewStepSchedule"]
    assert "no_such_module" in caplog.text


def test_unknown_attributes_of_the_pack_are_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fewstep.nothing
    assert "NODE_CLASS_MAPPINGS" in dir(fewstep)


def test_without_a_host_a_node_says_so():
    previous = set_host(None)
    try:
        with pytest.raises(HostError, match="fewstep run"):
            get_host()
    finally:
        set_host(previous)

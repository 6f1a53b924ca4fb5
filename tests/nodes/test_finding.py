"""What lets one find the way: categories, colours, and words to search for."""

import json
import re
from pathlib import Path

import fewstep
from fewstep.host.ui_layout import has_report
from fewstep.nodes import NODE_CLASS_MAPPINGS

SCRIPT = (Path(fewstep.__file__).parent / "web" / "colours.js").read_text("utf-8")
PARTS = {"solvers", "correctors", "schedules", "calibration", "distilled", "demo"}


def constant(name):
    return json.loads(re.search(rf"const {name} = (\{{.*?\n\}});", SCRIPT, re.S).group(1))


def test_every_category_has_a_colour_and_every_node_the_colour_of_its_category():
    wanted = {}
    for node_id, node in NODE_CLASS_MAPPINGS.items():
        _, _, part = node.CATEGORY.partition("/")
        assert not part or part in PARTS
        if part:
            wanted.setdefault(part, set()).add(node_id)
    assert {part: set(ids) for part, ids in constant("NODES").items()} == wanted
    palette = constant("PALETTE")
    assert set(palette) == PARTS and len(set(palette.values())) == len(PARTS)


def test_nodes_with_a_report_show_it():
    """The script's list is that of the nodes that send a text to the page, but for those whose text is shown otherwise."""
    listed = set(re.findall(r'"(FewStep\w+)"', (Path(fewstep.__file__).parent / "web" / "reports.js").read_text("utf-8")))
    assert listed == {node_id for node_id, node in NODE_CLASS_MAPPINGS.items() if has_report(node_id, node)}


def test_what_people_search_for_is_found():
    """Names of stock samplers and schedulers, and what users call things, lead to a node."""
    def found(word):
        return {i for i, n in NODE_CLASS_MAPPINGS.items() if any(word in text.lower() for text in (n.DISPLAY_NAME, *n.SEARCH_ALIASES))}

    for word, node_id in {
        "euler": "FewStepDDIM", "euler a": "FewStepDDIM", "dpmpp_2m": "FewStepDPMSolverMultistep", "dpm++ 2m": "FewStepDPMSolverMultistep",
        "dpmpp_2m_sde": "FewStepDPMSolverSDE", "uni_pc": "FewStepUniPC", "deis": "FewStepDEIS", "ipndm": "FewStepIPNDM", "heun": "FewStepDEISRungeKutta",
        "dpm_adaptive": "FewStepDPMSolverAdaptive", "sa_solver": "FewStepSASolver", "lcm": "FewStepConsistency", "lightning": "FewStepLoadDistilledLoRA",
        "karras": "FewStepKarrasSchedule", "sgm_uniform": "FewStepUniformTimeSchedule", "simple": "FewStepUniformTimeSchedule",
        "beta": "FewStepBetaSchedule", "flow shift": "FewStepShiftedSchedule", "best sampler": "FewStepAdvisor", "xy plot": "FewStepCompare",
        "calibrat": "FewStepLoadCalibration", "fewstep": "FewStepKSampler",
    }.items():
        assert node_id in found(word), word
    for node_id, node in NODE_CLASS_MAPPINGS.items():
        assert len({alias.lower() for alias in node.SEARCH_ALIASES}) == len(node.SEARCH_ALIASES), node_id

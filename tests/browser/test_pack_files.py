"""Blueprints, help pages and translations in the real frontend: added from the search box, rendered, and run."""

import re

import pytest
from chrome import FRONTENDS, NEEDS, OPTIONAL, ROOT, errors, serving, session
from fewstep.host.blueprints import blueprints
from fewstep.samplers.advice import rule_for

pytestmark = NEEDS


@pytest.fixture(scope="module", params=FRONTENDS, ids=lambda folder: "installed" if folder is None else "given")
def seen(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    with serving(ROOT, folder, request.param) as url:
        return session("pack.cjs", folder, url=url, language="ja", blueprints=list(blueprints()), help=["FewStepUniPC"])


def test_no_error_but_files_that_need_not_be_there(seen):
    assert errors(seen) == []
    assert all(OPTIONAL.search(path) for _, path in seen["failed"]), seen["failed"]


def test_blueprints_are_found_and_opened(seen):
    for name, blueprint in blueprints().items():
        found = seen["blueprints"][name]
        assert found["title"] == name and sorted(found["inside"]) == sorted(node["class_type"] for node in blueprint.prompt.values())
        assert [i[0] for i in found["inputs"]] == list(blueprint.inputs) and [o[0] for o in found["outputs"]] == list(blueprint.outputs)
        widgets = [i[0] for i in found["inputs"] if i[1] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")]
        assert [w for w in found["widgets"] if not w.startswith("$$")] == widgets, "they can be changed on the outer node"


def test_a_blueprint_runs(seen):
    assert "execution_success" in seen["events"] and "execution_error" not in seen["events"]
    (sampler,) = [node for node in seen["prompt"].values() if node["class_type"] == "FewStepKSampler"]
    assert sampler["inputs"]["steps"] == 5
    assert [n["inputs"]["text"] for n in seen["prompt"].values() if n["class_type"] == "CLIPTextEncode"] == ["5", ""]


def test_help_is_rendered_with_its_picture(seen):
    page = seen["help"]["FewStepUniPC"]
    if page is None:
        pytest.skip("this frontend loads its help when it is opened")
    assert page["error"] is None and "Use it" in page["text"] and "arXiv:2302.04867" in page["text"] and page["rows"] >= 10
    assert page["source"].endswith("/extensions/fewstep/docs/FewStepUniPC.png") and page["picture"] == "image/png"


def test_a_report_stands_in_the_node_and_is_not_saved(seen):
    head, why, evidence = seen["report"]["text"].split("\n")
    assert "cfg 4" in head and why == rule_for("vp", 8, 4.0).why and evidence.startswith("Measured:")
    assert seen["report"]["saved"] == [8, 4, False, True] and seen["report"]["inVue"]
    assert seen["report"]["title"] is None and re.fullmatch(r"#\w{3,6}", seen["report"]["solver"]), "colours by category"


def test_another_language(seen):
    assert seen["node"]["title"] == "Kサンプラー (FewStep)" and seen["node"]["inner"] == "FewStep/ソルバー"
    assert "ステップ数" in seen["node"]["widgets"] and "モデル" in seen["node"]["slots"]

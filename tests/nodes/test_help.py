"""The help pages: one for each node, in step with the nodes and the text in docs/nodes.md, with a picture that is there."""

import re

import pytest
from fewstep.nodes import NODE_CLASS_MAPPINGS, help
from PIL import Image

PAGES = help.pages()


LANGUAGES = list(help.WORDS)
USE, NOT = {"en": "**Use it**", "zh": "**适用**", "ja": "**使うとき**"}, {"en": "**Not**", "zh": "**不适用**", "ja": "**使わないとき**"}


def test_every_node_has_a_section_and_pages_and_nothing_else_has():
    assert {path.stem for path in help.PAGES.glob("*.md")} == {path.name for path in help.PAGES.glob("*/")} == set(NODE_CLASS_MAPPINGS)
    assert {path.stem for path in help.PAGES.glob("*.*g")} == set(NODE_CLASS_MAPPINGS)
    for language in LANGUAGES:
        assert set(help.prose(language)) == set(NODE_CLASS_MAPPINGS)
        assert {path.parent.name for path in help.PAGES.glob(f"*/{language}.md")} == set(NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node_id", list(NODE_CLASS_MAPPINGS))
def test_a_page_is_whole(node_id, language):
    text, node = (help.PAGES / node_id / f"{language}.md").read_text("utf-8"), NODE_CLASS_MAPPINGS[node_id]
    assert text == PAGES[f"{node_id}/{language}.md"], "run python -m fewstep.nodes.help"
    if language == "en":
        assert text == (help.PAGES / f"{node_id}.md").read_text("utf-8"), "for all other languages"
        assert text.startswith(f"# {node.DISPLAY_NAME}\n") and node.DESCRIPTION in text
    assert USE[language] in text and NOT[language] in text
    (name,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    with Image.open(help.PAGES / name) as picture:
        assert min(picture.size) >= 150
    for group, entries in node.INPUT_TYPES().items():
        for entry in entries if group != "hidden" else ():
            assert re.search(rf"^\| (?:{entry}|[^|]+\(`{entry}`\)) \|", text, re.M), entry
    cells = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(cells) == {4, 5}, "a | in a tooltip would break the table"


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_translated_sections_give_the_same_numbers(language):
    """Measured figures and names of widgets and values are those of the English text."""
    english, other = help.prose(), help.prose(language)
    for node_id, text in english.items():
        for pattern in (r"\d+\.\d+", r"`[^`]+`"):
            missing = set(re.findall(pattern, text)) - set(re.findall(pattern, other[node_id]))
            assert not missing, (node_id, missing)


def test_the_papers_are_those_of_the_methods():
    def cited(node_id):
        return re.findall(r"arxiv.org/abs/([\d.]+)", PAGES[f"{node_id}.md"])

    assert cited("FewStepUniPC") == cited("FewStepUniC") == ["2302.04867"]
    assert cited("FewStepDPMSolverMultistep") == ["2206.00927", "2211.01095"]
    assert cited("FewStepKarrasSchedule") == cited("FewStepEDMSchedule") == ["2206.00364"]
    assert cited("FewStepTeleport") == cited("FewStepCalibrateMoments") == ["2412.09726"]
    assert "2503.06674" in cited("FewStepLoadDistilledLoRA") and cited("FewStepPromptList") == []
    assert {node for node in help.PAPERS if node not in NODE_CLASS_MAPPINGS} == set()


def test_pictures_stay_small():
    assert sum(path.stat().st_size for path in help.PAGES.glob("*.*g")) < 1_500_000


def test_a_reference_reads_well():
    entry = "@misc{x,\n  title = {A {B}},\n  author = {M{\\\"u}ller, Ann and Roe, Jo\n    and others},\n  year = {2020},\n  eprint = {1234.56789},\n}"
    assert help.reference(entry) == "Ann Muller, Jo Roe, others: *A B*. 2020. [arXiv:1234.56789](https://arxiv.org/abs/1234.56789)".replace(", others", " et al.")

"""Every text of every node in every language, in the form that the host serves."""

import json
import re

import pytest
from fewstep.nodes import NODE_CLASS_MAPPINGS, locales

# names and units that are the same everywhere
KEPT = {
    "MODEL", "CLIP", "VAE", "SAMPLER", "SIGMAS", "LATENT", "FewStep", "eta", "s_noise", "h_init", "theta", "r", "gamma", "tau",
    "c_max", "c_min", "s_max", "rho", "cfg", "UniPC (FewStep)", "DEIS (FewStep)", "iPNDM (FewStep)", "PNDM (FewStep)",
    "DPM-Solver++ SDE (FewStep)", "DPM-Solver-v3 (FewStep)", "SA-Solver (FewStep)", "sde_start", "sde_end", "simple_order_2",
    "alpha", "beta",
}
OWN_SCRIPT = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]"}


def read(language, name):
    return json.loads((locales.ROOT / language / name).read_text("utf-8"))


def choices(text):
    """The options that an input with this tooltip offers and names in it."""
    return {
        option for node in NODE_CLASS_MAPPINGS.values() for group in node.INPUT_TYPES().values() for entry in group.values()
        if isinstance(entry, tuple) and isinstance(entry[0], list) and entry[1].get("tooltip") == text
        for option in entry[0] if re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text)
    }


def test_files_are_made_from_nodes_and_tables():
    for name, content in locales.files().items():
        assert (locales.ROOT / name).read_text("utf-8") == content, f"{name}: run python -m fewstep.nodes.locales"
    assert locales.faults() == []


def test_english_is_what_the_nodes_say():
    words = read("en", "nodeDefs.json")
    assert list(words) == list(NODE_CLASS_MAPPINGS)
    for node_id, node in NODE_CLASS_MAPPINGS.items():
        entries = {k: v for group, listed in node.INPUT_TYPES().items() if group != "hidden" for k, v in listed.items()}
        found = words[node_id]
        assert (found["display_name"], found["description"]) == (node.DISPLAY_NAME, node.DESCRIPTION)
        assert {k: v["tooltip"] for k, v in found["inputs"].items()} == {k: v[1]["tooltip"] for k, v in entries.items()}
        assert [v["tooltip"] for v in found["outputs"].values()] == list(node.OUTPUT_TOOLTIPS)


@pytest.mark.parametrize("language", ["en", *locales.TRANSLATED])
def test_same_keys_and_no_sign_that_the_page_reads_as_a_placeholder(language):
    """The page's translations are messages: braces, @ and | have a meaning in them."""
    def keys(value):
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else isinstance(value, str)

    for name in ("nodeDefs.json", "main.json"):
        assert keys(read(language, name)) == keys(read("en", name))
        for text in locales.leaves(read(language, name)):
            assert text.strip() == text and text and not set(text) & set("{}@|\n"), text


@pytest.mark.parametrize("language", locales.TRANSLATED)
def test_translations_say_the_same(language):
    table = locales.table_of(language)
    for english, text in table.items():
        assert (text == english) == (english in KEPT), english
        if english in KEPT:
            continue
        assert re.search(OWN_SCRIPT[language], text), text
        for pattern in (r"\d+(?:\.\d+)?", r"(?<![A-Za-z0-9])'[^']*\d[^']*'"):  # numbers, and values to be typed as they stand
            wanted, found = (sorted(re.findall(pattern, re.sub(r"\b([a-z]+)_\d\b", r"\1", t))) for t in (english, text))
            if pattern.endswith("'"):
                assert wanted == found, (english, text)
            else:  # "one" may become 1
                assert set(wanted) <= set(found) and len(found) - len(wanted) <= 4, (english, text)
        for option in choices(english):
            assert option in text, (option, text)
        assert text.endswith("(FewStep)") == english.endswith("(FewStep)")


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    for language in locales.TRANSLATED:
        table = locales.table_of(language)
        del table["sigmas"]
        (tmp_path / language).mkdir()
        (tmp_path / language / "texts.json").write_text(json.dumps({**table, "gone": "x"}), "utf-8")
    monkeypatch.setattr(locales, "ROOT", tmp_path)
    assert locales.faults() == [
        line for lang in locales.TRANSLATED for line in (f"{lang}: no translation of 'sigmas'", f"{lang}: no node says 'gone' any more")
    ]
    assert locales.main() == 1 and read("zh", "nodeDefs.json")["FewStepKSampler"]["inputs"]["sigmas"]["name"] == "sigmas"

"""Every method has its paper, and the entries are BibTeX."""

import re

import pytest
from fewstep.samplers import Recipe
from fewstep.samplers.citations import KEYS, entries
from fewstep.samplers.registry import CORRECTORS, REPLANNERS, SOLVERS, STARTS


def test_every_method_names_its_paper():
    methods = {**SOLVERS, **CORRECTORS, **REPLANNERS, **STARTS}
    assert [name for name in methods if not KEYS.get(name)] == [], "add the paper to samplers/citations.bib and its key to KEYS"
    assert {key for keys in KEYS.values() for key in keys} == set(entries())


@pytest.mark.parametrize("key", list(entries()))
def test_entries_are_whole(key):
    entry = entries()[key]
    assert re.fullmatch(r"@(inproceedings|misc|article)\{\w+,\n(  \w+ = \{.*\},?\n)+\}", entry.replace("\n    ", " "))
    assert entry.count("{") == entry.count("}")
    for field in ("title", "author", "year", "eprint"):
        assert f"  {field} = {{" in entry
    assert re.search(r"eprint = \{\d{4}\.\d{5}\}", entry) and re.search(r"year = \{20[12]\d\}", entry)


def test_a_recipe_cites_its_parts_once():
    text = Recipe("dpm_solver_multistep").corrected("unic").cite()
    assert re.findall(r"^@\w+\{(\w+),", text, re.M) == ["lu2022dpmsolver", "lu2022dpmsolverpp", "zhao2023unipc"]
    assert re.findall(r"^@\w+\{(\w+),", Recipe("unipc").corrected("unic").cite(), re.M) == ["zhao2023unipc"]

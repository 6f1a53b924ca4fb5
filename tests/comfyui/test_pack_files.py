"""What a real ComfyUI serves of the pack's files is what the embedded host serves."""

import json
from pathlib import Path

from fewstep.host.blueprints import FOLDER
from fewstep.host.server_pack import translations

ROOT = Path(__file__).resolve().parents[2]


def test_translations(server):
    served, own = server.json("/i18n"), translations(ROOT / "locales")
    assert set(own) <= set(served)
    for language, words in own.items():
        assert words["nodeDefs"].items() <= served[language]["nodeDefs"].items()
        assert words["nodeCategories"].items() <= served[language]["nodeCategories"].items()


def test_blueprints(server):
    listed = {key: entry for key, entry in server.json("/global_subgraphs").items() if entry["name"].startswith("FewStep ")}
    assert sorted(entry["name"] for entry in listed.values()) == sorted(path.stem for path in FOLDER.glob("*.json"))
    for key, entry in listed.items():
        data = json.loads(server.json(f"/global_subgraphs/{key}")["data"])
        assert data == json.loads((FOLDER / f"{entry['name']}.json").read_text("utf-8"))
        known = server.json("/object_info")
        assert all(node["type"] in known for node in data["definitions"]["subgraphs"][0]["nodes"])


def test_help_pages(server):
    for node_id, info in server.json("/object_info").items():
        if node_id.startswith("FewStep"):
            pack = info["python_module"].removeprefix("custom_nodes.")  # where the page looks for them
            page = server.get(f"/extensions/{pack}/docs/{node_id}.md").decode()
            assert page == (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
            picture = page.split("](", 1)[1].split(")", 1)[0]
            assert server.get(f"/extensions/{pack}/docs/{picture}")[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")

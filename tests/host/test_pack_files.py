"""What the server gives the page of the pack's files: translations, help pages and blueprints."""

import json

from fewstep.host.server_pack import translations
from fewstep.host.server_static import ROOT


def test_translations_are_served_as_the_page_reads_them(serve):
    async def talk(client):
        return [await (await client.get(path)).json() for path in ("/i18n", "/api/i18n")]

    found, again = serve(talk)
    assert found == again and {"en", "zh", "ja"} <= set(found)
    for language, words in found.items():
        assert words["nodeDefs"] == json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
        assert set(words) == {"nodeDefs", "nodeCategories"}
    assert found["zh"]["nodeDefs"]["FewStepKSampler"]["inputs"]["steps"]["name"] == "步数"
    assert found["ja"]["nodeDefs"]["FewStepKSampler"]["inputs"]["steps"]["name"] == "ステップ数"


def test_broken_and_empty_language_folders_are_left_out(tmp_path):
    for name, content in (("xx/main.json", "{"), ("yy/settings.json", '{"a": 1}'), ("zz/other.json", "{}")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content, "utf-8")
    assert translations(tmp_path) == {"yy": {"settings": {"a": 1}}}

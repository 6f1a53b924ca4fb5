"""``fewstep run`` on bad files: one clear message, exit code 2, no traceback, and nothing written, not even the output folder."""

import copy
import json
from pathlib import Path

import fewstep
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(fewstep.__file__).parent
API = json.loads((ROOT / "tests" / "data" / "workflows" / "solver_ddim.json").read_text("utf-8"))
DRAWING = json.loads((ROOT / "example_workflows" / "solver_ddim.json").read_text("utf-8"))


def changed(original, change):
    data = copy.deepcopy(original)
    change(data)
    return json.dumps(data)


def api(change):
    return changed(API, change)


def drawing(change):
    return changed(DRAWING, change)


def set_input(node, name, value):
    return api(lambda p: p[node]["inputs"].update({name: value}))


def png(path, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path.read_bytes()


def second_output(p):
    """A sound output beside a faulty one."""
    p["20"] = {"class_type": "SaveImage", "inputs": {"images": ["99", 0], "filename_prefix": "b"}}


FILES = {  # name: (content, words of the message)
    "not JSON": ('{"1": ', "is not JSON"),
    "empty": ("", "is not JSON"),
    "binary": (b"GIF89a\xff\xfe", "neither JSON nor a PNG"),
    "too deep": ("[" * 100_000, "nested too deep"),
    "list": ("[1, 2]", "a JSON object of nodes by id"),
    "list of workflows": (json.dumps([API]), "a JSON object of nodes by id"),
    "number": ("3", "a JSON object of nodes by id"),
    "null": ("null", "a JSON object of nodes by id"),
    "empty object": ("{}", "at least one node"),
    "no output": (api(lambda p: p.pop("9")), "no output node: add one, such as SaveImage"),
    "missing node": (api(lambda p: p.pop("5")), "node 7 (SamplerCustom): Bad linked input 'sampler': there is no node '5'"),
    "missing input": (api(lambda p: p["7"]["inputs"].pop("sigmas")), "node 7 (SamplerCustom): Required input is missing: give 'sigmas'"),
    "missing widget": (api(lambda p: p["7"]["inputs"].pop("cfg")), "node 7 (SamplerCustom): Required input is missing: give 'cfg'"),
    "no inputs": (api(lambda p: p["8"].pop("inputs")), "node 8 (VAEDecode): Required input is missing: give 'samples'"),
    "wrong socket type": (set_input("7", "sigmas", ["5", 0]), "'sigmas' expects SIGMAS, output 0 of node '5' is SAMPLER"),
    "slot out of range": (set_input("2", "clip", ["1", 5]), "no output 5; its outputs are: 0 (MODEL), 1 (CLIP), 2 (VAE)"),
    "negative slot": (set_input("2", "clip", ["1", -1]), "no output -1"),
    "slot of text": (set_input("2", "clip", ["1", "1"]), "a link is a list [node id, output number]"),
    "long link": (set_input("2", "clip", ["1", 1, 1]), "a link is a list [node id, output number]"),
    "value for a socket": (set_input("7", "sigmas", {"a": 1}), "expected a link [node id, output number] to a SIGMAS"),
    "cycle": (set_input("4", "width", ["7", 0]), "links form a circle; remove one of them. 7 -> 4 -> 7"),
    "link to itself": (set_input("7", "latent_image", ["7", 0]), "links form a circle"),
    "unknown class": (api(lambda p: p["5"].update(class_type="FewStepUniPCC")), "does not exist here; did you mean 'FewStepUniPC'? node '5'"),
    "class is a number": (api(lambda p: p["5"].update(class_type=5)), "needs a 'class_type'"),
    "node is null": (api(lambda p: p.update({"5": None})), "needs a 'class_type'"),
    "inputs are a list": (api(lambda p: p["5"].update(inputs=[])), "an object of 'inputs'"),
    "too small": (set_input("6", "steps", 0), "node 6 (FewStepSchedule): Value 0 of 'steps' is smaller than its minimum 1"),
    "infinite": (set_input("7", "cfg", float("inf")), "Value inf of 'cfg' is bigger than its maximum 100.0"),
    "text is null": (set_input("2", "text", None), "node 2 (CLIPTextEncode): Failed to convert 'text' to STRING"),
    "bad prompt": (set_input("2", "text", "17"), "node 2 (CLIPTextEncode): '17' names the number 17"),
    "one faulty output": (api(second_output), "node 20 (SaveImage): Bad linked input 'images': there is no node '99'"),
    "leaves the folder": (set_input("9", "filename_prefix", "../../x"), "node 9 (SaveImage): filename_prefix is '../../x'"),
    "drawing, link gone": (drawing(lambda d: d["links"].pop(2)), "node 6 (FewStepSchedule), input 'model': there is no link 3"),
    "drawing, link from nowhere": (drawing(lambda d: d["links"][0].__setitem__(1, 99)), "link 1 comes from node 99, which is not there"),
    "drawing, slot out of range": (drawing(lambda d: d["links"][0].__setitem__(2, 9)), "no output 9"),
    "drawing, short link": (drawing(lambda d: d["links"].__setitem__(0, [1, 2])), "this is no link: [1, 2]"),
    "drawing, links are an object": (drawing(lambda d: d.update(links={"a": 1})), "'links' is {'a': 1}, expected a list"),
    "drawing without links": (drawing(lambda d: d.pop("links")), "there is no link 1"),
    "drawing, nodes are null": (drawing(lambda d: d.update(nodes=None)), "'nodes' is None, expected a list"),
    "drawing, node is null": (drawing(lambda d: d["nodes"].__setitem__(0, None)), "this is no node: None"),
    "drawing, type is a list": (drawing(lambda d: d["nodes"][0].update(type=[1])), "this is no node"),
    "drawing, two ids": (drawing(lambda d: d["nodes"][0].update(id=2)), "two nodes have the id 2"),
    "drawing, widgets are a text": (drawing(lambda d: d["nodes"][3].update(widgets_values="abc")), "the widgets of node 2 are 'abc'"),
    "drawing, unknown class": (drawing(lambda d: d["nodes"][0].update(type="Nope")), "does not know the nodes 'Nope'"),
    "drawing, empty": (drawing(lambda d: d.update(nodes=[], links=[])), "at least one node"),
}
PICTURES = {  # name: (what to do with a folder, giving the file's content; words)
    "no workflow": (lambda p: png(p), "without a workflow inside"),
    "cut in the header": (lambda p: png(p, prompt=json.dumps(API))[:20], "not a readable picture"),
    "cut in the text": (lambda p: png(p, prompt=json.dumps(API))[:200], "not a readable picture"),
    "cut at the end": (lambda p: png(p, prompt=json.dumps(API))[:-20], "not a readable picture"),
    "magic only": (lambda p: png(p)[:8], "not a readable picture"),
    "prompt is not JSON": (lambda p: png(p, prompt="{"), "the text 'prompt' in"),
    "workflow is not JSON": (lambda p: png(p, prompt=json.dumps(API), workflow="{"), "the text 'workflow' in"),
    "prompt is a list": (lambda p: png(p, prompt="[]"), "a JSON object of nodes by id"),
}


def refused(cli, path, words):
    before = sorted(Path.cwd().rglob("*"))
    done = cli("run", path, "--out", "made/out")
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.stderr.split()), done.stderr
    assert done.stdout == "" and "Traceback" not in done.output
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file(cli, tmp_path, name):
    content, words = FILES[name]
    path = tmp_path / "workflow.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(cli, path, words)


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture(cli, tmp_path, name):
    make, words = PICTURES[name]
    path = tmp_path / "picture.png"
    path.write_bytes(make(path))
    refused(cli, path, words)


def test_no_file_and_a_folder(cli, tmp_path):
    refused(cli, "absent.json", "cannot read absent.json: No such file or directory")
    (tmp_path / "folder.png").mkdir()
    refused(cli, "folder.png", "cannot read folder.png: Is a directory")


def test_the_originals_run(cli, tmp_path):
    """Else the tests above would prove nothing."""
    (tmp_path / "api.json").write_text(json.dumps(API))
    (tmp_path / "drawing.json").write_text(json.dumps(DRAWING))
    (tmp_path / "picture.png").write_bytes(png(tmp_path / "picture.png", prompt=json.dumps(API), workflow=json.dumps(DRAWING)))
    for name in ("api.json", "drawing.json", "picture.png"):
        done = cli("run", name, "--out", "made/out")
        assert done.exit_code == 0, done.output

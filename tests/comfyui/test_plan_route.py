"""Plans and the comparison in both servers: the same numbers, and what the page needs."""

import pytest


def plan(at, prompt, node="5"):
    status, answer = at.post("/fewstep/plan", {"prompt": prompt, "node": node})
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_both_servers_draw_the_same_plan(server, embedded, graph, form):
    for solver in ("FewStepUniPC", "FewStepDEIS", "FewStepDPMSolverSinglestep"):
        one, other = (plan(at, graph(form, solver)) for at in (server, embedded))
        assert one["basis"] == other["basis"] and one["basis"]["known"]
        assert one["sigmas"] == pytest.approx(other["sigmas"], rel=1e-5) and one["label"] == other["label"]
        for row, twin in zip(one["table"]["values"], other["table"]["values"], strict=True):
            assert [v is None for v in row] == [v is None for v in twin]
            assert [v for v in row if v is not None] == pytest.approx([v for v in twin if v is not None], rel=1e-3, abs=1e-5)


def test_an_assumption_gives_way_to_what_ran(either, graph):
    prompt = graph("flow", "FewStepIPNDM", steps=5)
    alone = {"5": prompt["5"]}
    prompt["5"]["inputs"]["order"] = alone["5"]["inputs"]["order"] = 2
    either.run(prompt)
    drawn = plan(either, alone)
    assert drawn["basis"]["known"] and "last run" in drawn["basis"]["text"] and drawn["steps"] == 5 and drawn["sigmas"][0] == 1.0


@pytest.mark.parametrize(("body", "refused", "kind"), [
    ({"prompt": {}}, 400, "Malformed"), ({"prompt": {"1": {"class_type": "x" * 2**20, "inputs": {}}}, "node": "1"}, 413, "Oversized"),
    (b" " * (5 * 2**20), 413, "Oversized"), (b"{", 400, "Malformed"), (b"\xff\xfe", 400, "Malformed"), (b"[" * 100_000, 400, "Malformed"),
], ids=["no node", "long text", "blanks", "cut off", "no UTF-8", "nested"])
def test_refusals(either, body, refused, kind):
    for path in ("/fewstep/plan", "/api/fewstep/plan"):
        status, answer = either.post(path, body)
        assert status == refused and answer["error"]["type"] == kind


def test_the_page_gets_the_extension(either):
    scripts = [path for path in either.json("/extensions") if path.endswith("/fewstep.js")]
    assert len(scripts) == 1 and b"registerExtension" in either.get(scripts[0])
    assert b".fewstep-plan" in either.get(scripts[0].replace("fewstep.js", "fewstep.css"))


def test_the_comparison_runs(either, graph):
    prompt = {i: node for i, node in graph("eps", "FewStepUniPC").items() if i in "12345"}
    prompt["6"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    prompt["7"] = {"class_type": "FewStepCompare", "inputs": {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "vae": ["1", 2], "seed": 1, "cfg": 2.0,
        "steps": "3, 6", "schedule": "uniform_t", "reference_steps": 40, "sampler_1": ["5", 0], "sampler_2": ["6", 0]}}
    prompt["8"] = {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}
    entry = either.run(prompt)
    table = entry["outputs"]["7"]["text"][0]
    rows = [line.split() for line in table.splitlines()]
    assert [row[:4] for row in rows[2:4]] == [["1:", "unipc", "3", "3"], ["1:", "unipc", "6", "6"]], table
    assert rows[4][:3] == ["2:", "euler", "3"] and float(rows[3][-1]) < float(rows[2][-1]) < 1, table
    (image,) = either.images(entry, "8")
    assert image.shape[1] > 400

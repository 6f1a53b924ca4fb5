"""``fewstep serve`` over real sockets: a prompt from the queue to the picture, events, previews, and what is refused."""

import asyncio
import io
import json
import struct

import pytest
from aiohttp import FormData, WSMsgType
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.server import Options, make_app
from fewstep.host.workflows import sample_workflow
from PIL import Image


def workflow(steps=4, seed=1, **changes):
    settings = {"form": "eps", "prompt": "3", "negative": "", "batch": 1, "size": 64, "seed": seed, "steps": steps, "cfg": 1.0,
                "solver": "unipc", "schedule": "uniform_t", "options": {}}
    return sample_workflow(**{**settings, **changes})


async def queue(client, prompt, **more):
    answer = await client.post("/prompt", json={"prompt": prompt, "client_id": "me", **more})
    return answer.status, await answer.json()


async def finished(client, prompt_id):
    while True:
        history = await (await client.get(f"/api/history/{prompt_id}")).json()
        if history:
            return history[prompt_id]
        await asyncio.sleep(0.02)


async def listen(socket, last="execution_success"):
    """(JSON messages, binary messages) up to the queue's return to rest after ``last``."""
    texts, binaries = [], []
    while True:
        message = await socket.receive(timeout=30)
        if message.type == WSMsgType.BINARY:
            binaries.append(message.data)
        elif message.type == WSMsgType.TEXT:
            texts.append(json.loads(message.data))
            if texts[-1]["type"] == last:
                return texts, binaries


def test_a_prompt_becomes_a_picture_with_events_and_previews(serve):
    async def talk(client):
        socket = await client.ws_connect("/ws?clientId=me")
        first = json.loads((await socket.receive(timeout=10)).data)
        assert first["type"] == "status" and first["data"]["sid"] == "me"
        assert first["data"]["status"]["exec_info"]["queue_remaining"] == 0
        status, answer = await queue(client, workflow(), extra_data={"preview_method": "latent2rgb"})
        assert status == 200 and answer["node_errors"] == {}
        texts, binaries = await listen(socket)
        kinds = [t["type"] for t in texts]
        assert kinds.index("execution_start") < kinds.index("executing") < kinds.index("progress") < kinds.index("executed")
        values = [t["data"]["value"] for t in texts if t["type"] == "progress"]
        assert values == sorted(values) and values[-1] == 4
        assert binaries, "a preview of every step was asked for"
        kind = struct.unpack(">I", binaries[0][:4])[0]
        picture = Image.open(io.BytesIO(binaries[0][8:] if kind == 1 else binaries[0][8 + struct.unpack(">I", binaries[0][4:8])[0] :]))
        assert picture.format == "JPEG"
        entry = await finished(client, answer["prompt_id"])
        assert entry["status"] == {**entry["status"], "status_str": "success", "completed": True}
        (output,) = entry["outputs"].values()
        (image,) = output["images"]
        data = await (await client.get("/view", params=image)).read()
        saved = Image.open(io.BytesIO(data))
        assert saved.size == (64, 64) and json.loads(saved.text["prompt"]) == workflow()
        jobs = await (await client.get("/jobs?limit=5&status=completed")).json()
        assert [job["id"] for job in jobs["jobs"]] == [answer["prompt_id"]] and jobs["pagination"]["total"] == 1
        return True

    assert serve(talk)


def test_unchanged_nodes_are_cached_between_prompts_and_prompts_run_in_order(serve):
    async def talk(client):
        socket = await client.ws_connect("/ws?clientId=me")
        ids = [(await queue(client, workflow(seed=s)))[1]["prompt_id"] for s in (1, 1, 2)]
        starts, cached = [], []
        for _ in ids:
            texts, _ = await listen(socket)
            starts += [t["data"]["prompt_id"] for t in texts if t["type"] == "execution_start"]
            cached += [len(t["data"]["nodes"]) for t in texts if t["type"] == "execution_cached"]
        return ids, starts, cached

    ids, starts, cached = serve(talk)
    assert starts == ids and cached[0] == 0 < cached[2] < cached[1]


def test_faults_come_in_the_hosts_form_and_queue_nothing(serve):
    async def talk(client):
        prompt = workflow()
        node = next(i for i, n in prompt.items() if n["class_type"] == "FewStepKSampler")
        prompt[node]["inputs"]["steps"] = 0
        status, answer = await queue(client, prompt)
        assert status == 400 and answer["error"]["type"] == "prompt_outputs_failed_validation"
        assert answer["node_errors"][node]["errors"][0]["type"] == "value_smaller_than_min"
        assert (await queue(client, {}))[0] == 400
        for body in (b"not json", b"[1]"):
            assert (await client.post("/prompt", data=body)).status == 400
        return await (await client.get("/queue")).json()

    assert serve(talk) == {"queue_running": [], "queue_pending": []}


def test_the_page_and_what_it_asks_for(serve):
    async def talk(client):
        answers = {}
        for path in ("/", "/users", "/settings", "/extensions", "/object_info", "/system_stats", "/queue", "/history", "/jobs",
                     "/i18n", "/global_subgraphs", "/workflow_templates", "/features", "/experiment/models", "/prompt"):
            for prefix in ("", "/api") if path != "/" else ("",):
                answer = await client.get(prefix + path)
                assert answer.status == 200, prefix + path
                answers[path] = await (answer.text() if path == "/" else answer.json())
        assert (await client.post("/settings/Comfy.Theme", json="dark")).status == 200
        assert (await (await client.get("/settings")).json())["Comfy.Theme"] == "dark"
        return answers

    answers = serve(talk)
    assert "page" in answers["/"] and answers["/settings"]["Comfy.TutorialCompleted"] is True
    info = answers["/object_info"]
    for needed in ("CheckpointLoaderSimple", "CLIPTextEncode", "KSampler", "EmptyLatentImage", "VAEDecode", "SaveImage"):
        assert needed in info, "else the default graph opens a dialog about missing nodes"
    unipc = info["FewStepUniPC"]
    assert unipc["output"] == ["SAMPLER"] and unipc["input_order"]["required"][0] == "order" and unipc["category"].startswith("FewStep")
    assert "first_picture" in answers["/workflow_templates"]["fewstep"]


def test_saved_workflows_come_back(serve):
    async def talk(client):
        name = "/userdata/workflows%2Fmine.json"
        assert (await client.get(name)).status == 404
        assert (await client.post(name, data=b'{"a": 1}')).status == 200
        listed = await (await client.get("/userdata?dir=workflows")).json()
        text = await (await client.get(name)).text()
        assert (await client.delete(name)).status in (200, 204)
        return listed, text, (await client.get(name)).status

    assert serve(talk) == (["mine.json"], '{"a": 1}', 404)


def test_what_is_refused(serve, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")

    async def talk(client):
        statuses = {}
        for name, path in {
            "up": "/view?filename=../secret.txt&type=output", "subfolder": "/view?filename=secret.txt&subfolder=..&type=output",
            "absolute": f"/view?filename={tmp_path}/secret.txt&type=output", "userdata": "/userdata/..%2F..%2Fsecret.txt",
        }.items():
            answer = await client.get(path)
            statuses[name] = answer.status
            assert b"secret" not in await answer.read()
        statuses["origin"] = (await client.get("/queue", headers={"Origin": "http://evil.example"})).status
        statuses["host"] = (await client.get("/queue", headers={"Host": "evil.example"})).status
        statuses["large"] = (await client.post("/prompt", data=b"x" * 5000)).status
        form = FormData(quote_fields=False)
        form.add_field("image", b"png", filename="../../up.png")
        answer = await client.post("/upload/image", data=form)
        statuses["upload"] = answer.status if answer.status >= 400 else (await answer.json())["name"]
        return statuses

    statuses = serve(talk, max_body=4096)
    assert statuses["origin"] == statuses["host"] == 403 and statuses["large"] == 413
    assert all(statuses[name] in (400, 403, 404) for name in ("up", "subfolder", "absolute", "userdata"))
    assert statuses["upload"] in (400, 403, "up.png")
    stray = [p for p in tmp_path.rglob("*up.png") if (tmp_path / "out" / "input") not in p.parents]
    assert not stray


def test_the_default_graphs_loader_only_gives_the_demo_when_asked(serve):
    async def ask(client):
        prompt = {
            "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "3", "clip": ["4", 1]}},
            "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "3": {"class_type": "KSampler", "inputs": {
                "model": ["4", 0], "seed": 1, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
                "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["5", 0], "denoise": 1.0}},
            "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
            "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
        }
        info = (await (await client.get("/object_info/CheckpointLoaderSimple")).json())["CheckpointLoaderSimple"]
        names = info["input"]["required"]["ckpt_name"][0]
        if names:
            prompt["4"]["inputs"]["ckpt_name"] = names[0]
        status, answer = await queue(client, prompt)
        if status != 200:
            return status, json.dumps(answer)
        return status, (await finished(client, answer["prompt_id"]))["status"]["status_str"]

    status, text = serve(ask)
    assert status == 400 and "demo-checkpoint" in text
    assert serve(ask, demo_checkpoint=True) == (200, "success")


def test_a_missing_frontend_is_named(gaussian, tmp_path):
    from fewstep.host.errors import HostInputError

    with pytest.raises(HostInputError, match=r"index\.html"):
        make_app(EmbeddedHost(tmp_path), Options(frontend=tmp_path))

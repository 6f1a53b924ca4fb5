"""Error estimates on the websocket of the browser that queued the run, and of no other."""

import asyncio
import json

import pytest
import torch
from aiohttp import WSMsgType
from aiohttp.test_utils import TestClient, TestServer
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.server import Options, make_app
from fewstep.host.workflows import sample_workflow
from fewstep.nodes import estimates as feed
from fewstep.nodes.host import use_host
from fewstep.nodes.sampling import make_sampler
from fewstep.samplers import Recipe, frames, run
from fewstep.samplers.estimates import Estimates


def test_the_browser_that_queued_the_run_gets_them(tmp_path, gaussian, monkeypatch):
    monkeypatch.setattr(feed, "EVERY", 0.0)
    (tmp_path / "index.html").write_text("<html></html>")
    prompt = sample_workflow(form="eps", prompt="3", negative="", batch=1, size=64, seed=1, steps=6, cfg=1.0, solver="unipc",
                             schedule="uniform_t", options={})

    async def main():
        host = EmbeddedHost(tmp_path / "out", load_demo=gaussian.load)
        async with TestClient(TestServer(make_app(host, Options(frontend=tmp_path)))) as client:
            mine, other = [await client.ws_connect(f"/ws?clientId={name}") for name in ("me", "other")]
            await client.post("/prompt", json={"prompt": prompt, "client_id": "me"})
            messages = []
            while True:
                message = await mine.receive(timeout=30)
                if message.type == WSMsgType.TEXT:
                    messages.append(json.loads(message.data))
                    if messages[-1]["type"] == "execution_success":
                        break
            foreign = []
            while not other.closed:
                try:
                    foreign.append(json.loads((await other.receive(timeout=0.3)).data)["type"])
                except asyncio.TimeoutError:
                    break
            return messages, foreign, host.tell

    messages, foreign, tell = asyncio.run(asyncio.wait_for(main(), 60))
    found = [m["data"] for m in messages if m["type"] == feed.EVENT]
    assert feed.EVENT not in foreign and tell is None
    counts = [len(m["estimates"]) for m in found]
    assert counts[0] == 0 and counts == sorted(counts) and len(set(counts)) >= 5, "they come while the run goes on"
    assert [m["done"] for m in found] == [False] * (len(found) - 1) + [True]
    assert Recipe.from_json(found[-1]["recipe"]).solver == "unipc" and len(found[-1]["sigmas"]) == 7
    assert [step for step, _ in found[-1]["estimates"]] == list(range(len(found[-1]["estimates"])))


class Model:
    """What a sampler function is given, with an exact denoiser of unit Gaussian data."""

    def __init__(self, sampling):
        self.inner_model = self
        self.model_sampling, self.cfg, self.calls = sampling, 1.0, 0

    def __call__(self, x, sigma, **more):
        self.calls += 1
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize("bad", [False, True])
def test_the_numbers_are_the_librarys_and_the_samples_keep_their_bits(tmp_path, gaussian, bad):
    told, host = [], EmbeddedHost(tmp_path, load_demo=gaussian.load)
    recipe, sigmas = Recipe("unipc"), torch.tensor([10.0, 4.0, 1.5, 0.5, 0.1, 0.0])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 10

    def sample():
        with use_host(host):
            model = Model(host.demo_sampling("eps"))
            if bad:
                x[0, 0, 0, 0] = 1e38
            return make_sampler(recipe).sampler_function(model, x, sigmas, recipe_json=recipe.to_json())

    quiet = sample()
    host.tell = lambda event, data: told.append(json.loads(json.dumps(data, allow_nan=False)))
    assert torch.equal(sample(), quiet)
    if bad:
        assert told[-1]["estimates"][0] == [0, None], "what is not finite has no place in JSON"
        return
    own = Estimates(plan := recipe.resolve(frames.edm(), sigmas))
    run(plan, lambda y, s: y / (1 + s.reshape(-1, 1, 1, 1) ** 2), x, hooks=[own])
    assert told[-1]["estimates"] == [[step, pytest.approx(value, rel=1e-3)] for step, value in sorted(own.all().items())]

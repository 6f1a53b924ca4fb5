"""Interruption, order, and clients that leave: the same of the real server and of the embedded one."""

import pytest

SLOW = 3000  # steps: some seconds, unless it is stopped
SOLVERS = {  # many evaluations of each kind of engine loop
    "FewStepUniPC": {}, "FewStepDPMSolverSDE": {}, "FewStepDEISRungeKutta": {},
    "FewStepDPMSolverAdaptive": {"atol": 1e-5, "rtol": 0.0, "h_init": 0.001},
}


@pytest.fixture
def slow(graph):
    """slow(solver) -> a prompt that takes long."""

    def make(solver="FewStepUniPC", **more):
        prompt = graph("eps", solver, steps=SLOW, **more)
        prompt["5"]["inputs"] |= SOLVERS[solver]
        return prompt

    return make


@pytest.mark.parametrize("solver", SOLVERS)
def test_interrupting_leaves_the_server_usable(either, graph, slow, solver):
    with either.listen("me") as events:
        long = either.queue(slow(solver), client_id="me")
        events.wait("progress", prompt_id=long)
        assert either.post("/interrupt", {})[0] == 200
        entry = either.entry(long)
        assert entry["status"]["status_str"] == "error" and not entry["status"]["completed"] and entry["outputs"] == {}
        stopped = events.wait("execution_interrupted", prompt_id=long)
        assert (stopped["node_id"], stopped["node_type"]) == ("7", "SamplerCustom")
        assert any(event == "execution_interrupted" for event, _ in entry["status"]["messages"])
        reached = max(data["value"] for data in events.of("progress", prompt_id=long))
        assert reached < SLOW
        assert either.json("/queue") == {"queue_running": [], "queue_pending": []}
        assert len(either.images(either.run(graph("eps", solver)))) == 2


def test_an_interruption_of_nothing_stops_nothing(either, graph):
    assert either.post("/interrupt", {})[0] == 200
    assert len(either.images(either.run(graph("flow", "FewStepDDIM")))) == 2


def test_prompts_run_in_order(either, graph, slow):
    with either.listen("me") as events:
        first = either.queue(slow(), client_id="me")
        events.wait("progress", prompt_id=first)
        others = [either.queue(graph("eps", "FewStepUniPC", seed=seed), client_id="me") for seed in (7, 8)]
        front = either.queue(graph("eps", "FewStepUniPC", seed=9), client_id="me", front=True)
        rows = either.json("/queue")
        assert [row[1] for row in rows["queue_running"]] == [first]
        assert {row[1] for row in rows["queue_pending"]} == {*others, front}
        either.post("/interrupt", {})
        assert all(len(either.images(either.entry(prompt))) == 2 for prompt in (*others, front))
        events.wait("execution_success", prompt_id=others[-1])
        assert [data["prompt_id"] for data in events.of("execution_start")] == [first, front, *others]
        cached = {data["prompt_id"]: set(data["nodes"]) for data in events.of("execution_cached")}
        assert cached[others[1]] == {"1", "2", "3", "4", "5", "6"}, "what the prompt before has made is kept"


def test_a_prompt_can_be_taken_out_of_the_queue(either, graph, slow):
    with either.listen("me") as events:
        first = either.queue(slow(seed=3), client_id="me")
        events.wait("progress", prompt_id=first)
        removed, kept = (either.queue(graph("v", "FewStepDDIM", seed=seed), client_id="me") for seed in (1, 2))
        either.post("/queue", {"delete": [removed]})
        either.post("/interrupt", {})
        assert len(either.images(either.entry(kept))) == 2
    assert either.json(f"/history/{removed}") == {}


def test_a_client_that_drops_its_socket_loses_nothing(either, graph):
    prompt = graph("eps", "FewStepUniPC", steps=400, seed=21)
    with either.listen("gone") as events:
        queued = either.queue(prompt, client_id="gone")
        events.wait("progress", prompt_id=queued)
    with either.listen("gone") as events:  # it comes back under its name in the middle of the run
        assert events.wait("executing", node="7"), "it is told where the run is"
        events.wait("execution_success", prompt_id=queued)
        assert events.wait("executed", prompt_id=queued)["node"] == "9"
    pictures = either.images(either.entry(queued))
    assert len(pictures) == 2 and all(picture.std() > 20 for picture in pictures)


def test_a_client_that_never_comes_back_has_its_pictures_in_the_history(either, graph):
    with either.listen("left") as events:
        queued = either.queue(graph("eps", "FewStepUniPC", steps=200, seed=22), client_id="left")
        events.wait("progress", prompt_id=queued)
    assert len(either.images(either.entry(queued))) == 2

"""Error estimates of a run reach the browser that queued it, and no other: in the real server as in the embedded one."""

import itertools

EVENT = "fewstep.estimates"
seeds = itertools.count(700)


def test_estimates_come_to_the_browser_that_queued(either, graph):
    with either.listen("me") as mine, either.listen("other") as foreign:
        prompt = either.queue(graph("eps", "FewStepUniPC", steps=8, seed=next(seeds)), client_id="me")
        mine.wait("executing", prompt_id=prompt, node=None)
        found = mine.of(EVENT)
        assert not foreign.of(EVENT)
    assert found[0]["estimates"] == [] and [message["done"] for message in found] == [False] * (len(found) - 1) + [True]
    steps, values = zip(*found[-1]["estimates"], strict=True)
    assert list(steps) == list(range(len(steps))) and len(steps) >= 6 and len(found[-1]["sigmas"]) == 9
    assert all(0 < value < 1 for value in values)


def test_both_servers_send_the_same_numbers(server, embedded, graph):
    prompt, sent = graph("eps", "FewStepUniPC", steps=8, seed=next(seeds)), []
    for each in (server, embedded):
        with each.listen("me") as mine:
            mine.wait("executing", prompt_id=each.queue(prompt, client_id="me"), node=None)
            sent.append(mine.of(EVENT)[-1])
    assert sent[0]["recipe"] == sent[1]["recipe"]
    for a, b in zip(sent[0]["estimates"], sent[1]["estimates"], strict=True):
        assert a[0] == b[0] and abs(a[1] - b[1]) <= 1e-2 * b[1], "the hosts batch the prompts differently: last bits differ"

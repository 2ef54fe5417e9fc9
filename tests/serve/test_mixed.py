"""Mixed requests of many clients at once have the bytes that each has alone, without a cache."""

import asyncio
import json
import random

import httpx
import pytest

from tests.serve.clients import RealServer, parse_events, sources

COUNT, CLIENTS = 60, 16
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
KEYS = {
    "temperature": (0, 0.7, 1.5),
    "top_k": (1, 5),
    "top_p": (0.3, 0.9),
    "min_p": (0.05,),
    "typical_p": (0.8,),
    "presence_penalty": (1.0, -1.0),
    "frequency_penalty": (0.7,),
    "repetition_penalty": (1.3,),
    "no_repeat_ngram": (2, 3),
    "stop": ("e", ["ab", "q"]),
    "logit_bias": ({"5": 3, "9": -100},),
    "ignore_eos": (True,),
    "n": (2, 3),
}
STEMS = ["the quick brown fox jumps over the lazy", "a long prefix that many of the prompts share"]
"""Longer than a block of the prefix cache."""


def make_request(chance):
    """A path, a body and how it is sent: whole, as a stream, or as one that is cancelled."""
    body = {"model": chance.choice(["plain", "chatty"]), "seed": chance.randrange(1000)}
    body |= {key: chance.choice(values) for key, values in KEYS.items() if chance.random() < 0.25}
    body["max_tokens"] = chance.choice([1, 5, 12, 30, 60])  # the last ones slide the window
    text = chance.choice([*STEMS, ""]) + "".join(chance.choices("abc", k=3))
    mode = chance.choices(["whole", "stream", "cancel"], [4, 4, 1])[0]
    if chance.random() < 0.5:
        more = {"logprobs": 2} if chance.random() < 0.3 else {}
        return TEXT, {**body, **more, "prompt": text}, mode
    more = {"logprobs": True, "top_logprobs": 2} if chance.random() < 0.3 else {}
    return CHAT, {**body, **more, "messages": [{"role": "user", "content": text[-40:]}]}, mode


def merged(choices):
    """The choices of a response or of the events of a stream, each as text, reason and tokens."""
    found = {}
    for choice in choices:
        content = choice.get("message") or choice.get("delta") or {}
        one = found.setdefault(choice["index"], {"text": "", "reason": None, "tokens": []})
        one["text"] += choice.get("text") or content.get("content") or ""
        one["reason"] = one["reason"] or choice["finish_reason"]
        one["seed"] = choice["seed"]
        logprobs = choice["logprobs"] or {}
        one["tokens"] += logprobs.get("content") or [
            list(each)
            for each in zip(
                *(logprobs.get(key, []) for key in ("token_ids", "token_logprobs", "top_logprobs")),
                strict=True,
            )
        ]
    return found


async def send(http, path, body, mode):
    """What a request gets; of a cancelled one, the first events."""
    if mode == "whole":
        response = await http.post(path, json=body)
        assert response.status_code == 200, response.text
        return merged(response.json()["choices"])
    async with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        text = ""
        async for part in response.aiter_text():
            text += part
            if mode == "cancel":
                text = text.rpartition("\n\n")[0] + "\n\ndata: [DONE]\n\n"
                break
    choices = (choice for event in parse_events(text) for choice in event["choices"])
    return merged(choices)


async def send_all(url, requests, clients):
    """What requests get that so many clients send, each one after the other."""
    found = [None] * len(requests)
    places = iter(range(len(requests)))

    async def work():
        async with httpx.AsyncClient(base_url=url, timeout=300) as http:
            for place in places:
                found[place] = await send(http, *requests[place])

    await asyncio.gather(*(work() for _ in range(clients)))
    return found


@pytest.mark.parametrize("seed", [7])
def test_mixed_requests_at_once_are_those_alone(models, seed):
    chance = random.Random(seed)
    requests = [make_request(chance) for _ in range(COUNT)]
    server = RealServer(sources(models), max_rows=6, max_waiting=1000)
    try:
        together = asyncio.run(send_all(server.url, requests, CLIENTS))
        stats = [each.engine.stats for each in server.state.models.loaded]
        assert sum(each.cached_tokens for each in stats) > 100
    finally:
        server.close()
    server = RealServer(sources(models), prefix_cache_bytes=0)
    try:
        whole = [(path, body, "whole") for path, body, _ in requests]
        alone = asyncio.run(send_all(server.url, whole, 1))
    finally:
        server.close()
    for (_, body, mode), found, expected in zip(requests, together, alone, strict=True):
        if mode == "cancel":
            for index, choice in found.items():
                assert expected[index]["text"].startswith(choice["text"]), body
        else:
            assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True), body

"""Conversations for tests, and files of them in every format."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
from hypothesis import strategies as st

from src.data.chat_template import ChatTemplate, Message
from src.data.shards import ShardedTokens, SplitFigures, index_path, shard_path
from src.tokenizer import BPETokenizer, Tokenizer

TEXTS = st.text('abc <|>\nuserndé"\\', min_size=1, max_size=25).filter(str.strip)


def conversations(texts: st.SearchStrategy[str] = TEXTS, max_turns: int = 4) -> st.SearchStrategy:
    """Return a strategy of conversations with or without a system message."""
    turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=max_turns)
    return st.builds(make_conversation, turns, st.none() | texts)


def make_conversation(turns: list[tuple[str, str]], system: str | None = None) -> list[Message]:
    messages = [] if system is None else [Message("system", system.strip())]
    for asked, said in turns:
        messages += [Message("user", asked.strip()), Message("assistant", said.strip())]
    return messages


def random_conversations(count: int, seed: int = 0, words: int = 12) -> list[list[Message]]:
    """Return distinct conversations."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(
            "".join(draw.choices("abcdefghij", k=draw.randint(2, 7)))
            for _ in range(draw.randint(1, words))
        )

    return [
        make_conversation(
            [(f"{text()}?", f"{text()}.") for _ in range(draw.randint(1, 4))],
            text() if number % 3 == 0 else None,
        )
        for number in range(count)
    ]


def chat_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer with the tokens of the roles."""
    tokenizer = BPETokenizer(257)
    tokenizer.fit("a", verbose=False)
    ChatTemplate.add_to(tokenizer)
    return tokenizer


def write_shards(
    folder: Path,
    chats: list[list[Message]],
    tokenizer: Tokenizer,
    documents: tuple[str, ...] = (),
    name: str = "train",
) -> ShardedTokens:
    """Write documents and then conversations to shards, an end of text before each."""
    template = ChatTemplate(tokenizer)
    encoded = [tokenizer.encode(each) for each in documents]
    encoded += [template.encode(chat)[0] for chat in chats]
    ids = [id for part in encoded for id in (tokenizer.end_of_text, *part)]
    ends = accumulate(len(part) + 1 for part in encoded)
    starts = [end - len(part) for end, part in zip(ends, encoded, strict=True)]
    np.array(ids, "<u2").tofile(shard_path(folder, name, 0))
    np.array(starts, "<i8").tofile(index_path(folder, name))
    figures = SplitFigures(
        len(ids), len(encoded), source_documents=[len(documents)], conversations=len(chats)
    )
    return ShardedTokens(folder, name, "uint16", figures)


# Files


def as_dicts(chat: list[Message]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


def messages_lines(chats: list[list[Message]]) -> bytes:
    return "".join(json.dumps({"messages": as_dicts(chat)}) + "\n" for chat in chats).encode()


def messages_json(chats: list[list[Message]]) -> bytes:
    return json.dumps({"data": [{"messages": as_dicts(chat)} for chat in chats]}).encode()


def sharegpt_lines(chats: list[list[Message]]) -> bytes:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return "".join(
        json.dumps({"conversations": [{"from": names[r], "value": c} for r, c in chat]}) + "\n"
        for chat in chats
    ).encode()


def messages_parquet(chats: list[list[Message]]) -> bytes:
    sink = io.BytesIO()
    rows = pyarrow.table({"id": range(len(chats)), "messages": list(map(as_dicts, chats))})
    pyarrow.parquet.write_table(rows, sink)
    return sink.getvalue()


def speakers_text(chats: list[list[Message]]) -> bytes:
    names = {"user": "User", "assistant": "Assistant", "system": "System"}
    texts = ("\n".join(f"{names[r]}: {c}" for r, c in chat) for chat in chats)
    return "\n---\n".join(texts).encode()


MANY_TURNS: dict[str, Callable[[list[list[Message]]], bytes]] = {
    "openai.jsonl": messages_lines,
    "openai.json": messages_json,
    "sharegpt.jsonl": sharegpt_lines,
    "messages.parquet": messages_parquet,
    "speakers.txt": speakers_text,
}
"""Formats of conversations of many turns."""


def pair_lines(chats: list[list[Message]]) -> bytes:
    return "".join(
        json.dumps({"prompt": asked.content, "completion": said.content}) + "\n"
        for asked, said in chats
    ).encode()


def pair_table(chats: list[list[Message]]) -> bytes:
    written = io.StringIO()
    csv.writer(written).writerows(
        [("question", "answer"), *((asked.content, said.content) for asked, said in chats)]
    )
    return written.getvalue().encode()


def pair_tabs(chats: list[list[Message]]) -> bytes:
    written = io.StringIO()
    rows = [("frage", "antwort"), *((asked.content, said.content) for asked, said in chats)]
    csv.writer(written, delimiter="\t").writerows(rows)
    return written.getvalue().encode()


def pair_arrow(chats: list[list[Message]]) -> bytes:
    sink = io.BytesIO()
    columns = {
        "n": list(range(len(chats))),
        "instruction": [asked.content for asked, _ in chats],
        "output": [said.content for _, said in chats],
    }
    pyarrow.feather.write_feather(pyarrow.table(columns), sink)
    return sink.getvalue()


ONE_TURN: dict[str, Callable[[list[list[Message]]], bytes]] = {
    **MANY_TURNS,
    "pairs.jsonl": pair_lines,
    "pairs.csv": pair_table,
    "pairs.tsv": pair_tabs,
    "pairs.arrow": pair_arrow,
}
"""Formats of conversations of a question and an answer."""


def preference_lines(chats: list[list[Message]]) -> str:
    """Return pairs whose rejected reply is that of another conversation, in capitals."""
    replies = [chat[-1].content.upper() for chat in [*chats[1:], chats[0]]]
    others = [Message("assistant", reply) for reply in replies]
    return "".join(
        json.dumps({"chosen": as_dicts(chat), "rejected": as_dicts([*chat[:-1], other])}) + "\n"
        for chat, other in zip(chats, others, strict=True)
    )

"""Replies to held-out conversations: saved, loaded and counted."""

import pytest

from src.errors import AGI2Error
from src.evaluation.replies import FILE_NAME, Reply, describe, load_replies, save_replies


def test_they_are_saved_and_loaded(tmp_path):
    said = [{"role": "user", "content": "Hé?\n\u2028\x85"}]
    replies = [
        Reply(said, "a", "a", True),
        Reply(said, "a", "a", False),
        Reply(said, "a", "b", True),
    ]
    assert load_replies(tmp_path) == []
    save_replies(replies, tmp_path)
    assert load_replies(tmp_path) == replies
    assert describe(replies) == (
        "replies to 3 held-out conversations: 2 ended by themselves, 1 exactly as expected"
    )
    assert describe([]) == "no replies to held-out conversations: all are longer than the context"
    for damage in ("{", '{"reply": 1}', "[1]", "\udcff"):
        (tmp_path / FILE_NAME).write_bytes(damage.encode("utf-8", "surrogateescape"))
        with pytest.raises(AGI2Error, match=r"replies\.jsonl"):
            load_replies(tmp_path)

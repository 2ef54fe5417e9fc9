import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.chat_template import Message
from src.data.message_tree import MessageTree
from src.errors import AGI2Error


def said(*texts, system=None):
    """Messages whose roles take turns."""
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return ([Message("system", system)] if system else []) + turns


def texts(tree):
    return [message.content for message in tree.messages]


def lines(tree):
    """Name and text of each branch; the current one in capitals."""
    return {
        (branch.name.upper() if branch.is_current else branch.name): "".join(
            message.content for message in branch.messages
        )
        for branch in tree.branches
    }


def test_a_message_behind_an_earlier_one_begins_a_branch_and_loses_nothing():
    tree = MessageTree(said(*"abcd"))
    tree.go_back(2)
    assert texts(tree) == ["a", "b"]
    assert lines(tree) == {"1": "abcd"}  # the branch is complete, the position is not its end
    tree.append(Message("user", "x"))
    assert lines(tree) == {"1": "abcd", "2": "abx"}
    tree.switch("1")
    assert texts(tree) == [*"abcd"]
    tree.append(Message("user", "e"))
    assert lines(tree) == {"1": "abcde", "2": "abx"}


def test_a_branch_begins_where_it_is_named_and_both_go_on():
    tree = MessageTree(said(*"ab", system="s"))
    tree.fork("idea")
    tree.append(Message("user", "x"))
    tree.switch("1")
    tree.append(Message("user", "y"))
    tree.fork()
    tree.append(Message("assistant", "z"))
    assert lines(tree) == {
        "1": "saby",
        "idea": "sabx",
        "2": "sabyz",
    }
    assert [branch.is_current for branch in tree.branches] == [False, False, True]
    assert tree.system == "s"


@pytest.mark.parametrize("name", ["2", "two words", "x" * 41, " "])
def test_a_branch_is_named_by_a_word(name):
    with pytest.raises(AGI2Error, match=r"^a branch is named by one word of at most 40 charact"):
        MessageTree().fork(name)


def test_a_name_that_is_taken_or_unknown_is_refused():
    tree = MessageTree()
    tree.fork("idea")
    with pytest.raises(AGI2Error, match=r"^there is a branch 'idea' already$"):
        tree.fork("idea")
    with pytest.raises(AGI2Error, match=r"^there is no branch 'no'; the branches are 1, idea$"):
        tree.switch("no")


def test_a_replaced_conversation_stays_as_a_branch_unless_nothing_was_said():
    tree = MessageTree(said(system="old"))
    tree.replace(said(*"ab", system="new"))
    assert lines(tree) == {"1": "newab"}
    first = tree.path[0]
    tree.replace(said(*"ac", system="new"))
    assert lines(tree) == {"1": "newab", "2": "newac"}
    assert tree.path[0] is first  # what both begin with is the same
    tree.replace([])
    assert texts(tree) == []
    tree.append(Message("user", "q"))
    assert lines(tree) == {"1": "newab", "2": "newac", "3": "q"}


@given(
    st.lists(
        st.tuples(st.sampled_from(["say", "back", "switch", "fork", "replace"]), st.integers(0, 9)),
        max_size=30,
    )
)
def test_whatever_is_done_no_line_is_ever_lost(steps):
    tree = MessageTree()
    longest: dict[str, list[str]] = {}
    for number, (step, value) in enumerate(steps):
        if step == "say":
            role = "assistant" if tree.node.role == "user" else "user"
            tree.append(Message(role, f"{number};"))
        elif step == "back":
            tree.go_back(min(value, len(tree.turns)))
        elif step == "switch":
            names = [branch.name for branch in tree.branches]
            tree.switch(names[value % len(names)])
        elif step == "fork":
            tree.fork()
        else:
            tree.replace([*tree.messages[:value], Message("user", f"{number};")])
        found = {each.name: [m.content for m in each.messages] for each in tree.branches}
        for name, before in longest.items():
            assert found[name][: len(before)] == before
        longest = found
        assert sum(branch.is_current for branch in tree.branches) == 1
        current = next(each.messages for each in tree.branches if each.is_current)
        assert current[: len(tree.messages)] == tree.messages

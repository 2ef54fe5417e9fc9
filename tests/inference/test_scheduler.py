"""The scheduler alone: a function of the window takes the place of the model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.inference.scheduler import Scheduler, Step
from src.inference.sequence import Sequence

POSITIONS = 8


def sequence(prompt, max_length=5) -> Sequence:
    return Sequence(prompt, GenerationConfig(max_length=max_length, temperature=0), POSITIONS)


def next_token(window) -> int:
    """A token that depends on every token of the window."""
    return sum((place + 1) * token for place, token in enumerate(window)) % 5


def alone(prompt, max_length) -> list[int]:
    """The new tokens of a sequence from the definition of the sliding window."""
    text, window = list(prompt), list(prompt[-POSITIONS:])
    for _ in range(max_length):
        text.append(next_token(window))
        full = len(window) == POSITIONS
        window = text[-(POSITIONS // 2) :] if full else [*window, text[-1]]
    return text[len(prompt) :]


class Rows:
    """What a model runner does: the tokens that each row holds, checked before each use."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}

    def reusable(self, each: Sequence, row: int) -> int:
        held, window = self.held.get(row, []), each.window
        pairs = zip(held, window, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(window)))
        return min(shared, len(window) - 1)

    def run(self, scheduler: Scheduler, step: Step) -> None:
        for row, each, count in step.scheduled:
            assert scheduler.running[row] is each
            assert count >= 1
            del self.held.setdefault(row, [])[each.computed :]
            assert self.held[row] == each.window[: each.computed]
            self.held[row] += each.next_tokens(count)
            each.computed += count
            assert self.held[row] == each.window[: each.computed]
        for row, each, source in step.forks:
            assert scheduler.running[row] is each
            self.held[row] = list(self.held[source])
            assert self.held[row] == each.window
            each.computed = len(each.window)
        for each in scheduler.running:
            if each.pending == 0:
                each.append(next_token(each.window))
        self.move(scheduler)

    def move(self, scheduler: Scheduler) -> None:
        for source, target in scheduler.remove_finished():
            self.held[target] = list(self.held[source])


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=12)  # often equal


@given(
    requests=st.lists(
        st.tuples(PROMPTS, st.integers(1, 14), st.integers(0, 9)), min_size=1, max_size=8
    ),
    cancelled=st.dictionaries(st.integers(0, 7), st.integers(0, 12), max_size=3),
    max_rows=st.integers(1, 5),
    max_tokens=st.integers(1, 20),
)
@settings(deadline=None, max_examples=40)
def test_every_sequence_gets_the_tokens_it_gets_alone(requests, cancelled, max_rows, max_tokens):
    """Whenever it joins and others leave, are cancelled, fork, slide or are prefilled in chunks."""
    rows = Rows()
    scheduler = Scheduler(max_rows, max_tokens, rows.reusable)
    sequences = [sequence(prompt, length) for prompt, length, _ in requests]
    arrived: list[Sequence] = []
    first: list[Sequence] = []
    forked: list[Sequence] = []
    for time in range(2000):
        for index, each in enumerate(sequences):
            if requests[index][2] == time:
                scheduler.add(each)
                arrived.append(each)
            if cancelled.get(index) == time:
                each.finish("cancelled")
        rows.move(scheduler)
        busy = [each for each in arrived if each.finish_reason is None]
        decoding = [each for each in scheduler.running if each.pending == 1]
        step = scheduler.schedule()
        forked += [each.sequence for each in step.forks]
        taken = [each.sequence for each in step.scheduled]
        assert bool(taken) == bool(busy)
        assert sum(each.size for each in step.scheduled) <= max_tokens
        assert len(scheduler.running) <= max_rows
        assert [each.row for each in step.scheduled] == sorted(
            {each.row for each in step.scheduled}
        )
        # Sequences in a decode step are never kept waiting by a prefill.
        assert all(each in taken for each in decoding)
        before = {id(each) for each in arrived if each.new_tokens}
        rows.run(scheduler, step)
        first += [each for each in arrived if each.new_tokens and id(each) not in before]
        if not busy and time > 12:
            break
    assert scheduler.is_idle
    # First come, first served; a fork costs nothing and delays nobody.
    computed = [each for each in first if each not in forked]
    assert computed == [each for each in arrived if each in computed]
    for index, (each, (prompt, length, _)) in enumerate(zip(sequences, requests, strict=True)):
        expected = alone(prompt, length)
        if index in cancelled:
            assert each.new_tokens == expected[: len(each.new_tokens)]
        else:
            assert (each.new_tokens, each.finish_reason) == (expected, "length")


def test_a_long_prompt_is_prefilled_in_chunks_while_others_keep_going():
    scheduler, rows = Scheduler(2, 4), Rows()
    short, long = sequence([1]), sequence([0, 1, 1, 0, 1, 0, 1])
    for each in (short, long):
        scheduler.add(each)
    counts = []
    for _ in range(3):
        step = scheduler.schedule()
        counts.append([each.size for each in step.scheduled])
        rows.run(scheduler, step)
    assert counts == [[1, 3], [1, 3], [1, 1]]
    assert (len(short.new_tokens), len(long.new_tokens)) == (3, 1)


def test_equal_prompts_are_prefilled_once():
    scheduler, rows = Scheduler(5, 100), Rows()
    samples = [sequence(prompt) for prompt in ([1, 2, 3], [1, 2, 3], [4], [1, 2, 3], [4])]
    for each in samples:
        scheduler.add(each)
    step = scheduler.schedule()
    assert [(each.sequence, each.size) for each in step.scheduled] == [
        (samples[0], 3),
        (samples[2], 1),
    ]
    assert step.forks == [(2, samples[1], 0), (3, samples[3], 0), (4, samples[4], 1)]
    rows.run(scheduler, step)
    assert all(len(each.new_tokens) == 1 for each in samples)


def test_a_sequence_waits_for_the_row_that_it_can_be_forked_from():
    scheduler, rows = Scheduler(3, 2), Rows()
    samples = [sequence([1, 2, 3]), sequence([1, 2, 3])]
    for each in samples:
        scheduler.add(each)
    step = scheduler.schedule()
    assert (len(step.scheduled), step.forks) == (1, [])
    rows.run(scheduler, step)
    assert scheduler.schedule().forks == [(1, samples[1], 0)]


def test_the_last_sequence_moves_into_a_gap_and_no_other():
    scheduler, rows = Scheduler(4, 100), Rows()
    sequences = [sequence([token]) for token in range(4)]
    for each in sequences:
        scheduler.add(each)
    rows.run(scheduler, scheduler.schedule())
    for index in (1, 2):
        sequences[index].finish("stop")
    assert scheduler.remove_finished() == [(3, 1)]
    assert scheduler.running == [sequences[0], sequences[3]]
    assert scheduler.rows_wanted == 2
    sequences[3].finish("stop")
    assert scheduler.remove_finished() == []


def test_what_is_cancelled_while_it_waits_is_never_run():
    scheduler = Scheduler(1, 10)
    sequences = [sequence([1]), sequence([2])]
    for each in sequences:
        scheduler.add(each)
    sequences[0].finish("cancelled")
    assert [each.sequence for each in scheduler.schedule().scheduled] == [sequences[1]]


def test_windows_are_divided_at_multiples_of_the_grid():
    """Unless they end before; and what is computed beside decode steps is a piece, too."""
    rows = Rows()
    scheduler = Scheduler(9, 6, rows.reusable, grid=4)
    assert (scheduler.max_rows, scheduler.max_tokens) == (3, 6)
    assert Scheduler(9, 2, grid=4).max_tokens == 4
    short, long, last = sequence([1]), sequence([0, 1, 1, 0, 1, 0]), sequence([1, 1, 1, 1, 1, 0])
    for each in (short, long, last):
        scheduler.add(each)
    counts = []
    for _ in range(4):
        step = scheduler.schedule()
        counts.append([(each.sequence, each.size) for each in step.scheduled])
        rows.run(scheduler, step)
    assert counts == [
        [(short, 1), (long, 4)],
        [(short, 1), (long, 2)],
        [(short, 1), (long, 1), (last, 4)],
        [(short, 1), (long, 1), (last, 2)],
    ]


def test_a_prompt_is_not_forked_from_tokens_of_decode_steps_if_there_is_a_grid():
    for grid, forks in ((1, 1), (2, 0)):
        scheduler, rows = Scheduler(3, 20, grid=grid), Rows()
        first = sequence([1, 2, 3])
        scheduler.add(first)
        rows.run(scheduler, scheduler.schedule())
        scheduler.add(sequence(first.tokens))
        assert len(scheduler.schedule().forks) == forks


def test_a_prompt_whose_log_probabilities_are_recorded_is_not_forked():
    scheduler = Scheduler(4, 20)
    options = GenerationConfig()
    for wanted in (False, True, True, False):
        scheduler.add(Sequence([1, 2], options, POSITIONS, prompt_logprobs=wanted))
    step = scheduler.schedule()
    assert (len(step.scheduled), len(step.forks)) == (3, 1)

"""Match the parts of paths with those of glob patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence


def match_parts(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether path parts match pattern parts; `**` matches any number of path parts.

    Time is O(len(names) * len(pattern)), where backtracking would be exponential.
    """
    # The states of an NFA: the numbers of pattern parts that the names so far can have consumed.
    states = _skip_stars({0}, pattern)
    for name in names:
        next_states = set()
        for state in states:
            if state < len(pattern):
                if pattern[state] == "**":
                    next_states.add(state)
                elif fnmatch.fnmatch(name, pattern[state]):
                    next_states.add(state + 1)
        states = _skip_stars(next_states, pattern)
    return len(pattern) in states


def _skip_stars(states: set[int], pattern: Sequence[str]) -> set[int]:
    """Add to the states those reached by matching a `**` with no path part (epsilon moves)."""
    for state, part in enumerate(pattern):
        if part == "**" and state in states:
            states = states | {state + 1}
    return states

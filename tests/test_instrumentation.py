import sys

from tests.instrumentation import add_counters, executed_lines, flags

PROGRAM = '''"""A docstring."""

from __future__ import annotations

import functools


class Number:
    """A class."""

    value: int = 3
    """A field."""

    @functools.cached_property
    def double(self):
        """Return a product."""
        return (
            2
            * self.value
        )

    @staticmethod
    @functools.cache
    def never():
        return 1


def choose(n):
    global last
    last = n
    try:
        if n == 0: return "zero"
        elif n == 1:
            raise KeyError
        else:
            for i in range(n):
                if i == 7:
                    break
            else:
                pass
    except KeyError:
        return "error"
    except ValueError:
        return "never"
    finally:
        last = None
    match n:
        case 5:
            return [
                n
            ]
        case int():
            with open(__file__):
                while n:
                    n -= 1
    return lambda: (
        n
    )


for number in {numbers}:
    choose(number)
Number().double
'''


def lines_by_tracing(source, path):
    found = set()

    def trace(frame, event, _):
        if frame.f_code.co_filename == str(path) and event == "line":
            found.add(frame.f_lineno)
        return trace

    code, before = compile(source, str(path), "exec", dont_inherit=True), sys.gettrace()
    sys.settrace(trace)
    try:
        exec(code, {"__file__": str(path)})
    finally:
        sys.settrace(before)
    return found


def lines_by_counters(source, path):
    tree, groups = add_counters(source)
    code = compile(tree, str(path), "exec", dont_inherit=True)
    variables = {"__file__": str(path), **dict.fromkeys(flags(groups), True)}
    exec(code, variables)
    return executed_lines(groups, variables)


def statements(found, source, path):
    """Coverage's own view: the statements that have any of the lines."""
    from coverage.python import PythonParser

    parser = PythonParser(text=source, filename=str(path))
    parser.parse_source()
    return parser.translate_lines(found) & parser.statements


def test_the_counted_lines_are_those_that_a_trace_function_sees(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    for numbers in ([], [0], [1], [2], [5], [9], [0, 1, 2, 5, 9]):
        source = PROGRAM.replace("{numbers}", str(numbers))
        expected = statements(lines_by_tracing(source, path), source, path)
        counted = statements(lines_by_counters(source, path), source, path)
        # What differs is said in `instrumentation`: `except` and `case` count with their bodies.
        tests = {n for n, line in enumerate(source.splitlines(), 1) if "case " in line}
        tests |= {n for n, line in enumerate(source.splitlines(), 1) if "except " in line}
        assert counted - tests == expected - tests
        assert counted <= expected


def test_a_module_of_a_docstring_alone_is_counted(tmp_path):
    assert lines_by_counters('"""Nothing."""\n', tmp_path) == {1}


def test_of_a_group_that_was_not_completed_no_line_is_counted(tmp_path):
    source = "def f(x):\n    y = 1 / x\n    y += 1\n    if y: return y\n\ntry: f({})\nexcept: {}\n"
    assert lines_by_counters(source.format(1, 0), tmp_path) == {1, 2, 3, 4, 6}
    assert lines_by_counters(source.format(0, 0), tmp_path) == {1, 6, 7}

"""A process that has imported PyTorch and runs Python programs in forks of itself.

Started by `tests.processes`, with the descriptors of two sockets: it ends when the other end of the
first is closed, and listens at the second. Each connection sends one byte and five files: a request
(JSON); the program's standard input, output and error; and a socket on which a line with the
program's pid is written and, when it has ended, its exit status.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import termios
import threading
import types

# What the project, an optimizer, torchrun and tests import, at the cost of seconds of CPU time.
PACKAGES = (
    *("torch", "torch._dynamo", "torch.distributed.run", "torch.distributed.checkpoint"),
    *("torch.distributed.fsdp", "torch.utils.checkpoint", "safetensors.torch"),
    *("html", "numpy.ctypeslib", "psutil", "pydantic.json_schema", "pydantic.main"),
    *("pydantic.plugin._schema_validator", "pydantic.type_adapter", "rich.live", "rich.logging"),
    *("rich.progress", "tokenizers", "tomli_w", "tomllib", "typer", "xml.parsers.expat"),
    *("zoneinfo", "transformers.generation.logits_process", "lm_eval.utils", "pandas"),
)


def serve(parent: socket.socket, listener: socket.socket) -> dict:
    """Fork for each request; return the request in the process that is to run its program."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the watchers
    while True:
        if parent in select.select([parent, listener], [], [])[0]:
            sys.exit()
        with listener.accept()[0] as connection:
            descriptors = socket.recv_fds(connection, 1, 5)[1]
        if os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        parent.close()
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request, *streams, status = descriptors
        if pid := os.fork():
            watch(pid, status, [request, *streams])
        os.close(status)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        with open(request, encoding="utf-8") as file:
            return json.load(file)


def watch(pid: int, status: int, not_needed: list[int]) -> None:
    """Write the pid of a program and, when it has ended, its exit status."""
    for descriptor in not_needed:
        os.close(descriptor)
    os.write(status, b"%d\n" % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(status, b"%d\n" % code)
    os._exit(0)


def prepare(request: dict) -> None:
    """Take on what a new process is given: environment, working folder, streams, Ctrl-C."""
    if request["is_terminal"]:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        is_error = name == "stderr"
        stream = open(  # noqa: SIM115
            number,
            "w" if number else "r",
            buffering=1 if is_error or os.isatty(number) else -1,
            encoding=encoding,
            errors="backslashreplace" if is_error else "strict",
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # The parent is the watcher, which lives as long as the program.
    os.getppid = lambda: request["parent"]
    is_ignored = request["ignores_sigint"]
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_ignored else signal.default_int_handler)


def run(arguments: list[str]) -> None:
    """Run `python *arguments`."""
    sys.argv = arguments
    if arguments[0] == "-c":
        sys.path.insert(0, "")
        program = compile(arguments.pop(1), "<string>", "exec")
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(program, sys.modules["__main__"].__dict__)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")


def run_and_end(arguments: list[str]) -> None:
    """Run `python *arguments`, and end the process as Python does, but free no objects.

    Freeing all that PyTorch has created takes longer than most programs.
    """
    status: int = 0
    try:
        run(arguments)
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if ending.code is not None and not isinstance(ending.code, int):
            print(ending.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = 120
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in a fork need not look at what was imported here
    request = serve(*(socket.socket(fileno=int(each)) for each in sys.argv[1:]))
    prepare(request)
    run_and_end(request["arguments"])

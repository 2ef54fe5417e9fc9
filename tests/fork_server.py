"""A process that has imported PyTorch and runs Python programs in forks of itself.

Started by `tests.processes`, with the descriptor of a socket as its argument. Each message on it is
one byte and five files: a request (JSON); the program's standard input, output and error; and a
socket on which a line with the program's pid is written and, when it has ended, its exit status.
"""

import fcntl
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import termios
import types


def serve(requests: socket.socket) -> dict:
    """Fork for each request; return the request in the process that is to run its program."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the watchers
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, 1, 5)
        if not message:
            sys.exit()
        if os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        requests.close()
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


if __name__ == "__main__":
    # Imports of the project's modules, of the first optimizer and of torchrun; seconds of CPU time.
    for name in ("torch", "torch._dynamo", "torch.distributed.run", "safetensors.torch"):
        importlib.import_module(name)
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    prepare(request)
    run(request["arguments"])

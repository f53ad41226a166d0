"""Start Python processes by forking one that has imported the libraries, since importing them takes seconds.

`warm_processes` starts `python -m headspan …`, the processes of devices, of decoding and of pools, the explorer's
models and searches, the kernels of notebooks and programs that begin with `FORKED` that way. Each has its own
arguments, environment, folder, signals and files, and is a child of the test's process; it only does not import again
what is loaded. Everything else starts as ever, and so do these where something differs that a library reads when it is
imported. `tests/engine/test_startup.py` has real starts.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import json
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.unsynced import do_not_sync

# Besides what these import, nothing may be loaded that starts threads: a forked process would wait for them forever.
_LIBRARIES = (
    *("headspan.run.executors.device_main", "headspan.run.precompute", "headspan.cli.main", "headspan.explore.server"),
    *("headspan.web.state.model_worker", "pyarrow.parquet", "headspan.demo", "ipykernel.kernelapp"),
    *("headspan.cli.precompute", "headspan.features.training.train", "headspan.features.scores.over_pairs"),
    # pyarrow imports it when it first makes an array of a list.
    "pandas",
)
# Variables that are read when Python begins or a library is imported.
_READ_AT_IMPORT = (
    *("ATEN", "CUDA", "DNNL", "HF_", "HOME", "LANG", "LC_", "LD_", "MKL", "MPL", "OMP", "ONEDNN", "OPENBLAS"),
    *("PYTHON", "TORCH", "TRITON", "XDG_CACHE"),
)
_PROGRAMS = (
    *("headspan", "headspan.web.state.model_worker", "headspan.web.searches.worker", "ipykernel_launcher"),
    "tests.killed_runs",
)
# The first line of a test's program for `python -c` that is forked as well, and a word of the benchmarks' programs.
FORKED = "# forked\n"
_BENCHMARK = "from benchmarks."
_PYTHON = sys.executable
# Part of the program of a decoding process.
_DECODING = "; from headspan.decode.processes.worker import main; main("
# The argument of a command that starts processes of devices.
_SEVERAL = "cpu,cpu"
_ONE_THREAD = {("OPENBLAS_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")}
_SUBREAPER = 36
_END = b"end"
# Importing the libraries takes some ten seconds of a core that is not shared.
_LONGEST_SECONDS = 240
# Held while a process is started: who adopts it is a setting of the whole process, whichever server forks it.
_STARTING = threading.RLock()
_ABOVE = 300
_BEGIN = "from tests.warm_python import ended, serve; ended(serve({}))"


class _Server:
    """The process that forks, and the socket on which it takes orders. It ends when the socket closes."""

    def __init__(self, orders: socket.socket, pid: int, wait: Callable[[], object]) -> None:
        self.pid = pid
        self._socket, self._wait = orders, wait
        # A test that would wait for ever fails.
        orders.settimeout(_LONGEST_SECONDS)

    def start(
        self,
        arguments: list[str],
        environment: dict[str, str],
        folder: str,
        standard: Sequence[int],
        passed: Iterable[Any],
        session: bool = False,
    ) -> int:
        """Start a process with these files as its standard input, output and error, and others. Returns its id."""
        files = sorted(map(int, passed))
        order = {
            "arguments": arguments,
            "environment": environment,
            "folder": folder,
            "files": [0, 1, 2, *files],
            "session": session,
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "ignored": [int(n) for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) == signal.SIG_IGN],
        }
        with _STARTING, _adopting():
            socket.send_fds(self._socket, [json.dumps(order).encode()], [*standard, *files])
            return int(self._socket.recv(64))

    def end(self) -> None:
        """Let the process end, whoever else may still have the socket, such as a forked process."""
        with suppress(OSError):
            self._socket.send(_END)
        self._socket.close()
        self._wait()


def servers() -> set[int]:
    """The ids of the processes that fork others for this one."""
    return {server.pid for server in _servers.values()}


def _new_server(environment: dict[str, str]) -> _Server:
    """A new Python that imports the libraries."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = _PLAIN(
            [sys.executable, "-c", _BEGIN.format(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
            cwd=Path(__file__).parents[1],
        )
    return _Server(ours, process.pid, process.wait)


def _forked_server(files: list[int]) -> _Server | Callable[[], None]:
    """A fork of this process that lets go of `files`. In a process that the fork starts later, that one's program."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child:
        theirs.close()
        return _Server(ours, child, lambda: os.waitpid(child, 0))
    ours.close()
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in files:
        os.dup2(nothing, file)
    os.close(nothing)
    return _served(theirs)


def be_warm(files: list[int]) -> Callable[[], None] | None:
    """Let this process, which has no threads yet, fork what it starts; such a fork returns here with its program.

    The process that forks lets go of `files`, so that others do not wait for it to close them.
    """
    _servers.clear()
    server = _forked_server(files)
    if not isinstance(server, _Server):
        return server
    _servers[read_at_import(os.environ)] = server
    subprocess.Popen = WarmPopen  # type: ignore[misc]
    return None


_PLAIN = subprocess.Popen
_PLAIN_SPAWN = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]
# By what their libraries have read. The explorer's models have an environment of their own.
_usual: list[dict[str, str]] = []
_servers: dict[frozenset[tuple[str, str]], _Server] = {}


def read_at_import(environment: Any) -> frozenset[tuple[str, str]]:
    """The variables that libraries read when they are imported."""
    read = {(name, value) for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}
    # Where there is one thread, a decoding process says so to every library.
    return frozenset(read - _ONE_THREAD if ("OMP_NUM_THREADS", "1") in read else read)


@contextmanager
def _adopting() -> Iterator[None]:
    """In the `with` block, processes whose parent ends become children of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)


class WarmPopen(_PLAIN):  # type: ignore[type-arg]
    """`subprocess.Popen`, which forks the warm process where that makes no other difference."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, *others: Any) -> None:
        names = ("pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell", "p2cread", "p2cwrite", "c2pread")
        names += ("c2pwrite", "errread", "errwrite", "restore_signals", "gid", "gids", "uid", "umask")
        given = dict(zip((*names, "start_new_session", "process_group"), others, strict=True))
        program = _program(args)
        unusual = (executable, preexec_fn, given["gid"], given["gids"], given["uid"])
        usual = not any(each is not None for each in unusual) and not given["shell"] and close_fds
        environment = os.environ if given["env"] is None else given["env"]
        server = None
        if usual and given["umask"] < 0 and given["process_group"] < 0 and program is not None:
            server = _server_for(environment)
        if server is None or program is None:
            return super()._execute_child(args, executable, preexec_fn, close_fds, *others)
        standard = [
            own if file == -1 else file
            for own, file in enumerate((given["p2cread"], given["c2pwrite"], given["errwrite"]))
        ]
        folder = os.fspath(given["cwd"] or os.getcwd())  # noqa: PTH109
        self.pid = server.start(
            program, dict(environment), folder, standard, given["pass_fds"], given["start_new_session"]
        )
        self._child_created = True
        pipes = (given["p2cread"], given["p2cwrite"], given["c2pread"], given["c2pwrite"])
        self._close_pipe_fds(*pipes, given["errread"], given["errwrite"])  # type: ignore[attr-defined]


def _spawn(path: Any, arguments: Any, passed: Any) -> int:
    """`multiprocessing.util.spawnv_passfds`, which forks the warm process for the processes of a pool."""
    words = [os.fsdecode(word) for word in arguments]
    if words[:2] == [os.fsdecode(path), "-c"] and "spawn_main" in words[2]:
        server = _server_for(os.environ)
        if server is not None:
            return server.start(words[1:], dict(os.environ), os.getcwd(), (0, 1, 2), passed)  # noqa: PTH109
    return _PLAIN_SPAWN(path, arguments, passed)


def _usual_environments() -> list[frozenset[tuple[str, str]]]:
    """The variables of all tests, and those of the explorer's models."""
    from headspan.web.state.model_process import _OFFLINE

    return [read_at_import({**usual, **more}) for usual in _usual for more in ({}, _OFFLINE)]


def _server_for(environment: Any) -> _Server | None:
    """The server whose libraries have read what these would read; None if only a real start will do."""
    read = read_at_import(environment)
    with _STARTING:
        if read not in _servers:
            if read not in _usual_environments():
                return None
            _servers[read] = _new_server(dict(environment))
        return _servers[read]


def _program(args: Any) -> list[str] | None:
    """The arguments after those of Python, from -m or -c on, if this process may be forked."""
    if isinstance(args, str | bytes | os.PathLike):
        return None
    words = [os.fsdecode(word) for word in args]
    if words[:1] != [_PYTHON]:
        return None
    safe = words[1:2] == ["-P"]
    words = words[2 if safe else 1 :]
    if words[:1] == ["-m"] and words[1] in _PROGRAMS:
        return words
    from headspan.run.executors import process

    if words[:1] != ["-c"]:
        return None
    if safe:
        return ["-P", *words] if words[1] == process._BEGIN else None
    return words if words[1].startswith(FORKED) or _DECODING in words[1] or _BENCHMARK in words[1] else None


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> Iterator[None]:
    """Let `subprocess` fork a warm process, in all tests. It is started when a test first needs it."""
    if not hasattr(socket, "send_fds") or not sys.platform.startswith("linux"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", WarmPopen)
        patch.setattr(multiprocessing.util, "spawnv_passfds", _spawn)
        with suppress(ImportError):
            patch.setattr(import_module("jupyter_client.launcher"), "Popen", WarmPopen)
        _usual.append(dict(os.environ))
        yield
    _usual.clear()
    while _servers:
        _servers.popitem()[1].end()


@pytest.fixture
def real_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every process as a new Python in this test, which is about what a process imports."""
    monkeypatch.setattr(subprocess, "Popen", _PLAIN)
    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", _PLAIN_SPAWN)


def serve(number: int) -> Callable[[], None]:
    """Import the libraries and take orders on the socket `number`; returns what a forked process is to run."""
    orders = socket.socket(fileno=number)
    do_not_sync()
    for name in _LIBRARIES:
        with suppress(ImportError):
            import_module(name)
    # PIL imports its formats when it opens its first image.
    Image.init()
    gc.collect()
    gc.freeze()
    return _served(orders)


def _served(orders: socket.socket) -> Callable[[], None]:
    """Take orders; returns only in a new process, with its program."""
    assert threading.active_count() == 1, threading.enumerate()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, files, _, _ = socket.recv_fds(orders, 1 << 20, 64)
        if message in (b"", _END):
            os._exit(0)
        receiving, sending = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                os.close(receiving)
                os.close(sending)
                return _become(json.loads(message), files, orders)
            os.write(sending, str(child).encode())
            os._exit(0)
        os.close(sending)
        child = int(os.read(receiving, 64))
        os.close(receiving)
        for file in files:
            os.close(file)
        # Its child is now a child of the process that has given the order.
        os.waitpid(between, 0)
        orders.send(str(child).encode())


def _become(order: dict[str, Any], files: list[int], orders: socket.socket) -> Callable[[], None]:
    """Take over what the order says of a process; returns its program."""
    orders.close()
    high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(high, order["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    if order["session"]:
        os.setsid()
    for each in (signal.SIGINT, signal.SIGTERM):
        usual = signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL
        signal.signal(each, signal.SIG_IGN if each in order["ignored"] else usual)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    arguments = order["arguments"]
    safe = arguments[0] == "-P"
    if _SEVERAL in arguments:
        # It starts processes that are as warm. They must be its own children.
        program = be_warm(order["files"])
        if program is not None:
            return program
    signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])
    how, what, *rest = arguments[1:] if safe else arguments
    # The first folder is the one in which this process has begun.
    sys.path[:1] = [] if safe else [os.getcwd() if how == "-m" else ""]  # noqa: PTH109
    sys.argv = [how, *rest]
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    if how == "-m":
        if what.count("."):
            # It runs as the main module, not as the one that has been imported.
            sys.modules.pop(what, None)
        return lambda: runpy._run_module_as_main(what)  # type: ignore[attr-defined]
    code = compile(what, "<string>", "exec")
    return lambda: exec(code, main.__dict__)


def ended(program: Callable[[], None]) -> None:
    """Run a program to the end of its process, which comes as in any Python, but without taking modules apart."""
    code: Any = 0
    try:
        program()
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    while _servers:
        _servers.popitem()[1].end()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            # As Python does when its last output cannot be written.
            code = code or 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)

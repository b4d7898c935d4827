"""Fails, kills at or records the nth call to the system below one folder (system_calls.c).

A test's file, run as a script by `run_script`, starts with the shim loaded, imports everything once, and forks a
child for each case: a fresh process in a millisecond. `Calls` is the shim as seen from such a script.
"""

import ctypes
import functools
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

FAIL, KILL, HALF, STICKY = 1, 2, 4, 8
# Letters of calls: open to write and to read, write, read, fsync, close, truncate, rename, link, mkdir, unlink, stat and
# access, opendir and readdir, mmap.
CHANGING = "owftnlmu"
LOOKING = "irsdp"
SHIM = "FORETHOUGHT_TEST_SHIM"


@functools.cache
def shim():
    """Build the shim, or skip where there is no C compiler or another system than Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    built = Path(tempfile.mkdtemp(prefix="system_calls")) / "calls.so"
    source = Path(__file__).with_suffix(".c")
    done = subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, source, "-ldl"], capture_output=True)
    if done.returncode:
        pytest.skip(f"the shim does not build here: {done.stderr.decode()[-200:]}")
    return built


def run_script(path, *arguments, timeout_s=120):
    """Run a test's file as a script with the shim loaded; give what it pickled to its standard output."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore:This process", path, *map(str, arguments)],
            capture_output=True,
            timeout=timeout_s,
            env=os.environ
            | {"LD_PRELOAD": str(shim()), SHIM: str(shim()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    finally:
        shutil.rmtree(shim().parent)
        shim.cache_clear()
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return pickle.loads(done.stdout)


class Calls:
    """The shim of this process; forked children have it, too."""

    def __init__(self, folder):
        self._shim = ctypes.CDLL(os.environ[SHIM])
        self._shim.calls_count.restype = ctypes.c_long
        self._shim.calls_watch(os.fsencode(os.path.abspath(folder)))

    def arm(self, mode, number, code=0, kinds=""):
        """Let the `number`th call from now on, of these kinds, fail with `code`, or kill this process."""
        self._shim.calls_arm(mode, ctypes.c_long(number), code, kinds.encode())

    def disarm(self):
        self._shim.calls_arm(0, ctypes.c_long(0), 0, b"")

    @property
    def count(self):
        """Calls since they were armed."""
        return int(self._shim.calls_count())

    def mark(self, text):
        """Write a line of one's own into the record."""
        self._shim.calls_mark(text.encode())

    @contextmanager
    def recorded(self, path):
        """Write all that is done below the folder to a file: `read_record` reads it."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._shim.calls_record(descriptor)
        try:
            yield
        finally:
            self._shim.calls_record(-1)
            os.close(descriptor)


@dataclass(frozen=True)
class Call:
    """One call that was done: `id` is that of the opened file, `at` its flags, offset or size."""

    kind: str
    id: int
    at: int
    path: str
    other: str
    content: bytes


def read_record(path):
    raw, calls, at = Path(path).read_bytes(), [], 0
    head = struct.Struct("<cQQQII")
    while at < len(raw):
        kind, number, offset, size, first, second = head.unpack_from(raw, at)
        at += head.size
        parts = []
        for length in (first, second, size):
            parts.append(raw[at : at + length])
            at += length
        calls.append(Call(kind.decode(), number, offset, os.fsdecode(parts[0]), os.fsdecode(parts[1]), parts[2]))
    return calls


def fork(work, *arguments):
    """Run `work` in a forked child; give what it returned, or the number of the signal that ended it."""
    reader, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        torch.set_num_threads(1)  # OpenMP waits for ever for the threads that a fork leaves behind
        try:
            told = work(*arguments)
            with open(pipe, "wb") as file:
                pickle.dump(told, file)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(pipe)
    with open(reader, "rb") as file:
        told = file.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status))
    assert status == 0, "a forked child failed"
    return pickle.loads(told)

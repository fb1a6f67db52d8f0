"""A worker that is asked how it is, whatever keeps it."""

from __future__ import annotations

import ctypes
import os

from celery.worker.control import control_command

from celery_graceful import Graceful
from tests.apps import make_app, say, wait_for_file

app = make_app("probed")
Graceful(app)


@control_command(args=[("path", str)])
def block(state, path):
    """The main thread, and with it the loop, stands still."""
    say("blocked")
    wait_for_file(path)
    say("not blocked any more")


@app.task
def busy(path):
    say("busy")
    wait_for_file(path)


@app.task
def hold_gil(path):
    """Until somebody writes to the pipe."""
    pipe = os.open(path, os.O_RDWR)
    say("holds the GIL")
    ctypes.PyDLL(None).read(pipe, ctypes.create_string_buffer(1), 1)
    os.close(pipe)


@app.task
def inherited():
    """What a child of the pool has from its parent: sockets that listen, and locked files."""
    with open("/proc/self/net/tcp") as table:
        listening = {f"socket:[{row.split()[9]}]" for row in table if row.split()[3] == "0A"}
    folder = "/proc/self/fd"
    files = {os.path.realpath(f"{folder}/{fd}") for fd in os.listdir(folder)}
    return sorted(files & {*listening, app.conf.graceful_probe_file})

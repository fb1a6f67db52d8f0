"""Exit handlers run once, whoever comes to run them while others do."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.support.peers import environ
from tests.support.workers import TIMEOUT

PATCHES = {
    "plain": "",
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}

COMMON = """
    import atexit, os
    from celery_graceful.system import native
    from celery_graceful.worker.exit_handlers import ExitHandlers

    others, in_it = ExitHandlers(), native.Doorbell()

    def say(word):
        os.write(1, f"{word} ".encode())

    def slow():
        say("slow")
        in_it.ring()
        native.pause(0.3)  # in which the other one comes, and must not begin

    atexit.register(say, "last")
    atexit.register(slow)
    atexit.register(say, "first")
"""

BY_FORCE_FIRST = """
    def by_force():
        others.run()
        say("left")
        os._exit(3)

    native.start_thread(by_force, "by force")
    in_it.wait(60)
    if leaves:
        others.expect()  # the main thread came to its own end meanwhile
"""

MAIN_THREAD_FIRST = """
    def by_force():
        in_it.wait(60)
        others.run()
        say("NOT REACHED")

    def leave():
        atexit.unregister(leave)
        others.run()
        say("left")
        os._exit(3)

    native.start_thread(by_force, "by force")
    others.expect()
    if leaves:
        atexit.register(leave)
"""


def run(patch: str, code: str, leaves: bool) -> tuple[int, list[str]]:
    lines = [PATCHES[patch], f"leaves = {leaves}", textwrap.dedent(COMMON)]
    argv = [sys.executable, "-c", "\n".join([*lines, textwrap.dedent(code)])]
    done = subprocess.run(
        argv, env=environ(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.split()


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("patch", PATCHES)
def test_the_interpreter_ends_while_they_run_by_force(patch: str, leaves: bool) -> None:
    assert run(patch, BY_FORCE_FIRST, leaves) == (3, ["first", "slow", "last", "left"])


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("patch", PATCHES)
def test_the_last_resort_comes_while_the_interpreter_runs_them(patch: str, leaves: bool) -> None:
    status, left = (3, ["left"]) if leaves else (0, [])
    assert run(patch, MAIN_THREAD_FIRST, leaves) == (status, ["first", "slow", "last", *left])

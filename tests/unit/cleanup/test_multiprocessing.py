"""Processes that multiprocessing and billiard start: they leave without ``atexit``."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.workers import ROOT

PROGRAM = """
import multiprocessing, os, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from celery import Celery
from celery_graceful import Graceful
from celery_graceful.cleanup import callbacks

graceful = Graceful(Celery("program", set_as_current=False))

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

@graceful.resource
def db():
    say("open", os.getpid() == PARENT)
    yield 1
    say("close", os.getpid() == PARENT)

PARENT = int(os.environ.setdefault("PARENT", str(os.getpid())))
graceful.on_exit(lambda: say("everywhere", os.getpid() == PARENT), scope="everywhere")
graceful.on_exit(say, "process")
graceful.on_exit(say, "worker", scope="worker")

def body(*_):
    db.get()

def run(process):
    process.start()
    process.join()
    say("ended", process.exitcode)
"""


def lines_of(folder: Path, code: str, head: str = PROGRAM) -> list[str]:
    """What a program of its own says."""
    path = folder / "program.py"
    path.write_text(head + '\nif __name__ == "__main__":\n' + textwrap.indent(code, "    "))
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


CHILD = ["open False", "everywhere False", "close False"]
LAST = ["everywhere True"]

#: How a child is started, and what it takes for the parent to know that it has ended.
STARTS = {
    **{
        method: f"run(multiprocessing.get_context('{method}').Process(target=body))"
        for method in ("fork", "spawn", "forkserver")
    },
    "Pool": """
        pool = multiprocessing.get_context("fork").Pool(1)
        pool.map(body, [1])
        pool.close()
        pool.join()
        """,
    "ProcessPoolExecutor": """
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
            executor.submit(body).result()
        """,
    "billiard": "import billiard\nrun(billiard.Process(target=body))",
    "fork of a program that spawns": """
        multiprocessing.set_start_method("spawn")
        import billiard
        run(billiard.Process(target=body))
        """,
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_child_cleans_up_once(tmp_path: Path, start: str) -> None:
    said = lines_of(tmp_path, textwrap.dedent(start))
    assert [line for line in said if line != "ended 0"] == [*CHILD, *LAST]


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit(3)", 3), ("1 / 0", 1), ("run(make(target=body))", 0)]
)
def test_however_it_ends(tmp_path: Path, end: str, status: int) -> None:
    """Also after a child of its own; and a worker's child is none any more in its forks."""
    code = f"""
make = multiprocessing.get_context("fork").Process
callbacks.enter("process", "worker")
def ends():
    {end}
run(make(target=ends))
callbacks.enter()
"""
    said = lines_of(tmp_path, code)
    own = [*CHILD, "ended 0"] if status == 0 else []
    assert said == [*own, "everywhere False", f"ended {status}", *LAST]


def test_before_its_queues_are_closed(tmp_path: Path) -> None:
    code = """
context = multiprocessing.get_context("fork")
queue = context.Queue()
def puts():
    graceful.on_exit(queue.put, "the last one", scope="everywhere")
    queue.put("one")
run(context.Process(target=puts))
say(queue.get(), queue.get())
"""
    said = lines_of(tmp_path, code)
    assert said == ["everywhere False", "ended 0", "one the last one", *LAST]


def test_in_no_more_time_than_others_have(tmp_path: Path) -> None:
    code = """
graceful.app.conf.graceful_exit_timeout = 0.5
graceful.on_exit(time.sleep, 3600, scope="everywhere")
start = time.monotonic()
run(multiprocessing.get_context("fork").Process(target=body))
say(time.monotonic() - start < 30)
"""
    said = lines_of(tmp_path, code)
    assert said == [*CHILD, "ended 0", "True", *LAST]


def test_a_spawned_one_waits_for_its_threads_first(tmp_path: Path) -> None:
    """As the interpreter does: it comes to ``atexit``."""
    head = PROGRAM + textwrap.dedent(
        """
        def threaded():
            def ends():
                time.sleep(0.5)
                say("thread ended")
            threading.Thread(target=ends).start()
        """
    )
    code = "run(multiprocessing.get_context('spawn').Process(target=threaded))"
    said = lines_of(tmp_path, code, head)
    assert said == ["thread ended", "everywhere False", "ended 0", *LAST]


def test_a_child_that_imports_the_app_late(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(PROGRAM)
    head = """
import multiprocessing, os

def body():
    import late
    late.body()
"""
    code = """
os.environ["PARENT"] = str(os.getpid())
process = multiprocessing.get_context("fork").Process(target=body)
process.start()
process.join()
"""
    assert lines_of(tmp_path, code, head) == CHILD

#!/usr/bin/env python3
"""Records what a terminal shows, as SVG that moves: ``make recordings``.

``docs/_static/demo.svg`` is ``make demo``; ``docs/_static/status.svg`` is ``celery graceful status
--watch`` while three workers, under load, are replaced one after the other. All of it is real:
processes in a terminal, read by pyte. Each picture is a strip of frames, moved by CSS; where
nothing happens for long it goes on sooner.
"""

from __future__ import annotations

import itertools
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

import pyte

from celery_graceful.demo.servers import redis_server, slow_service
from celery_graceful.system.guarded_process import Process

STATIC = Path(__file__).parents[1] / "docs" / "_static"
APP = "celery_graceful.demo.app"

#: Seconds for which a frame stays at least, at most, and the last one does.
SHORTEST, LONGEST, LAST = 0.4, 2.0, 5.0

#: Of a letter, in pixels.
WIDE, HIGH = 8.4, 18.0

COLOURS = {
    "default": "#d0d7de",
    "red": "#ff7b72",
    "green": "#7ee787",
    "brown": "#e3b341",
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#76e3ea",
}


class Frame(NamedTuple):
    """What the terminal has shown from a moment on: its rows, as the inside of an SVG text."""

    at: float
    rows: tuple[str, ...]


class Terminal:
    """A command in a terminal of its own.

    Args:
        argv: The command.
        env: Added to the environment.
        columns, rows: Of the terminal.
    """

    def __init__(self, argv: list[str], env: dict[str, str], columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        size = {"COLUMNS": str(columns), "LINES": str(rows), "TERM": "xterm"}
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            argv, env={**os.environ, **size, **env}, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.frames: list[Frame] = []

    def record(self, until: Callable[[], bool] = lambda: False) -> None:
        """Read what it shows, until the command has ended or somebody says so."""
        began = time.monotonic()
        open_ = True
        while open_ and not until():
            end = time.monotonic() + SHORTEST
            while open_ and (left := end - time.monotonic()) > 0:
                if select.select([self._master], [], [], left)[0]:
                    open_ = self._read()
            rows = tuple(self._row(number) for number in range(self.rows))
            if any(rows) and (not self.frames or self.frames[-1].rows != rows):
                self.frames.append(Frame(time.monotonic() - began, rows))
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        os.close(self._master)

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self._stream.feed(data)
        return bool(data)

    def _row(self, number: int) -> str:
        spans: list[tuple[tuple[str, bool], str]] = []
        line = self._screen.buffer[number]
        for column in range(self.columns):
            char = line[column]
            look = (char.fg, char.bold)
            if spans and (spans[-1][0] == look or char.data == " "):
                spans[-1] = (spans[-1][0], spans[-1][1] + char.data)
            else:
                spans.append((look, char.data))
        while spans and not spans[-1][1].strip():
            spans.pop()
        return "".join(_span(fg, bold, text) for (fg, bold), text in spans).rstrip()


def _span(fg: str, bold: bool, text: str) -> str:
    said = escape(text, quote=False)
    style = f' fill="{COLOURS.get(fg, COLOURS["default"])}"' if fg != "default" else ""
    style += ' font-weight="bold"' if bold else ""
    return f"<tspan{style}>{said}</tspan>" if style else said


def svg(frames: list[Frame], columns: int, rows: int, title: str) -> str:
    """A picture that moves through the frames, again and again."""
    width, height = columns * WIDE + 24, rows * HIGH + 48
    starts = [0.0]
    for before, after in itertools.pairwise(frames):
        starts.append(starts[-1] + min(after.at - before.at, LONGEST))
    total = starts[-1] + LAST
    strip = rows * HIGH
    names: dict[str, int] = {}
    shown, steps = [], []
    for number, frame in enumerate(frames):
        part = 100 * starts[number] / total
        steps.append(f"{part:.2f}%{{transform:translateY(-{number * strip:g}px)}}")
        for at, row in enumerate(frame.rows):
            if row:
                name = names.setdefault(row, len(names))
                y = number * strip + at * HIGH + 14
                shown.append(f'<use href="#r{name}" y="{y:g}"/>')
    defs = "".join(f'<text id="r{name}">{row}</text>' for row, name in names.items())
    last = (len(frames) - 1) * strip
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" \
role="img" aria-label="{escape(title)}">
<style>
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;\
fill:{COLOURS["default"]};white-space:pre}}
.s{{animation:s {total:.1f}s step-end infinite}}
@keyframes s{{{"".join(steps)}}}
@media (prefers-reduced-motion){{.s{{animation:none;transform:translateY(-{last:g}px)}}}}
</style>
<defs>{defs}</defs>
<rect width="{width:g}" height="{height:g}" rx="8" fill="#0d1117"/>
<text x="12" y="22" style="fill:#7d8590">$ {escape(title)}</text>
<svg x="12" y="36" width="{columns * WIDE:g}" height="{strip:g}">
<g class="s">{"".join(shown)}</g>
</svg>
</svg>
"""


def write(terminal: Terminal, name: str, title: str) -> None:
    """Write what was recorded."""
    frames = terminal.frames
    used = max(at + 1 for f in frames for at, row in enumerate(f.rows) if row)
    path = STATIC / f"{name}.svg"
    path.write_text(svg(frames, terminal.columns, used, title), encoding="utf-8")
    print(f"{path}: {len(frames)} frames, {path.stat().st_size / 1000:.0f} kB")


def demo() -> None:
    """A deploy, as ``make demo`` shows it."""
    terminal = Terminal([sys.executable, "-m", "celery_graceful.demo"], {}, 118, 34)
    terminal.record()
    write(terminal, "demo", "make demo")


def status() -> None:
    """Three workers that are replaced, seen by somebody who watches."""
    workers: list[Process] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server(Path(folder)) as redis,
        slow_service(5.0, lambda waited: None) as service,
    ):
        env = {
            "DEMO_REDIS": redis,
            "DEMO_SERVICE": service,
            "DEMO_FOLDER": folder,
            "TERMINATION_GRACE_PERIOD_SECONDS": "10",
        }
        os.environ.update(env)
        argv = [sys.executable, "-m", "celery", "-A", APP, "graceful", "status"]
        over = threading.Event()
        try:
            deploy = threading.Thread(target=_deploy, args=(workers, over), daemon=True)
            workers += [_worker(number) for number in (1, 2, 3)]
            _until_there(3)
            terminal = Terminal([*argv, "--watch", "--every", "0.5"], {}, 80, 24)
            deploy.start()
            terminal.record(over.is_set)
        finally:
            for worker in workers:
                worker.kill()
    write(terminal, "status", f"celery -A {APP} graceful status --watch")


def _until_there(count: int) -> None:
    from celery_graceful.demo.app import app  # reads the environment
    from celery_graceful.operations import Operations

    end = time.monotonic() + 60
    while len(Operations(app).workers()) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{count} workers do not start")
        time.sleep(0.2)


def _worker(number: int) -> Process:
    argv = [sys.executable, "-m", "celery", "-A", APP, "worker", "-c", "2", "-l", "ERROR"]
    argv += ["-n", f"w{number}@shop", "--without-mingle", "--without-gossip"]
    return Process(argv, {"DEMO_WORKER": f"w{number}"}, subprocess.DEVNULL)


def _deploy(workers: list[Process], over: threading.Event) -> None:
    from celery_graceful.demo.app import app  # reads the environment

    numbers = itertools.count(1)

    def load() -> None:
        for name in ("export_orders", "call_carrier", "resize_photos") * 2:
            app.send_task(name, task_id=f"{name}-{next(numbers)}")

    load()
    time.sleep(6)
    for number, old in enumerate(workers[:3], 4):
        workers.append(_worker(number))
        load()
        time.sleep(4)
        old.signal(signal.SIGTERM)
        time.sleep(4)
    time.sleep(6)
    over.set()


if __name__ == "__main__":
    asked = sys.argv[1:] or ["demo", "status"]
    for name in asked:
        {"demo": demo, "status": status}[name]()

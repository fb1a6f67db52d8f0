"""Exports that stop at agreed rows, to be interrupted or killed there."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say

app = make_app("export")
Graceful(app)

FOLDER = Path(os.environ.get("EXPORT_FOLDER", "."))
STEP = int(os.environ.get("EXPORT_STEP", "100"))
RETRY_AT = 3


def stop(self, row: int, after_write: bool) -> None:
    """Wait here for whatever the test does, once."""
    number, rest = divmod(row, STEP)
    if rest or not number or bool(number % 2) is not after_write:
        return
    mode = self.name.rpartition(".")[2]
    try:
        os.close(os.open(FOLDER / f"{mode}-{number}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if number == RETRY_AT:
        raise self.retry(countdown=0)
    say("at", mode, number, row, os.getpid())
    self.wait_for_interrupt(120)


def write(mode: str, row: int) -> None:
    """Append one row to the file, in one piece."""
    fd = os.open(FOLDER / f"{mode}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % row)
    os.close(fd)


def rows_in_files(self, loop) -> int:
    mode = self.name.rpartition(".")[2]
    for row in loop:
        stop(self, row, after_write=False)
        write(mode, row)
        stop(self, row, after_write=True)
    return self.interruptions


@app.task(base=GracefulTask, bind=True, checkpoint_interval=0.02)
def throttled(self, total):
    return rows_in_files(self, self.iterate(range(total), name="rows"))


@app.task(base=GracefulTask, bind=True)
def every_row(self, total):
    return rows_in_files(self, self.iterate(range(total), name="rows", every=1))


@app.task(base=GracefulTask, bind=True)
def exactly_once(self, total):
    db = sqlite3.connect(FOLDER / "rows.db", isolation_level=None, timeout=60)
    db.execute("PRAGMA synchronous=OFF")  # processes are killed here, not machines
    db.execute("CREATE TABLE IF NOT EXISTS rows (row)")
    db.execute("CREATE TABLE IF NOT EXISTS progress (job PRIMARY KEY, done)")
    found = db.execute("SELECT done FROM progress WHERE job = ?", [self.request.id]).fetchone()
    loop = self.iterate(range(total), cursor=found[0] if found else None)
    for row in loop:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO rows VALUES (?)", [row])
        stop(self, row, after_write=False)
        db.execute("REPLACE INTO progress VALUES (?, ?)", [self.request.id, loop.cursor])
        db.execute("COMMIT")
        stop(self, row, after_write=True)
    return self.interruptions

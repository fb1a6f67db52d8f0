"""``celery graceful status``: who works, on what, and what waits for somebody."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from celery_graceful.cli.app import command_of, operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    Command,
    Seconds,
    duration,
    folded,
    frame,
    moment,
    paint,
    say_json,
    shown,
    table,
    terminal_width,
)
from celery_graceful.cli.progress import Working
from celery_graceful.operations.records import RunningTask, Status, Worker
from celery_graceful.store.store import StoreAway

__all__ = ["lines_of", "status"]

HEAD = ["WORKER", "PHASE", "SINCE", "LEFT", "RUNS", "CLAIMS", "LAG"]

#: Findings that are shown.
SHOWN = 20

COLOURS = {"running": "green", "quiet": "yellow", "soft": "yellow"}


@click.command(cls=Command)
@JSON
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option(
    "--every",
    type=Seconds(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between looks.",
)
@click.pass_context
def status(ctx: click.Context, as_json: bool, watch: bool, every: float) -> int:
    """All workers: phase, seconds left, what runs and where it stands.

    Below: what somebody should look at, and the command that mends it. Exits with 1 if there is
    something, and with 3 if Redis does not answer.
    """
    if watch and as_json:
        raise click.UsageError("--watch is for people: ask for --json as often as you like")
    operations = operations_of(ctx)
    command = command_of(ctx)
    while watch:
        try:
            found = shown(operations.status())
            lines = list(_workers(found, terminal_width())), list(_findings(found, command))
        except StoreAway as exc:  # whoever watches wants to see it come back
            lines = [paint(shown(f"Error: {exc}"), "red")], []
        click.echo(frame(*lines))
        time.sleep(every)
    with Working("looks at all workers"):
        found = operations.status()
    if as_json:
        say_json(found.to_dict())
    else:
        for line in lines_of(found, terminal_width(), command):
            click.echo(line)
    return FOUND if found.findings else FINE


def lines_of(status: Status, width: int, command: str) -> Iterator[str]:
    """What is printed of it.

    Args:
        status: It.
        width: Columns of the terminal.
        command: In front of what mends.
    """
    status = shown(status)
    yield from _workers(status, width)
    yield from _findings(status, command)


def _workers(status: Status, width: int) -> Iterator[str]:
    rows = [_row(worker, status) for worker in status.workers]
    heads, *lines = table(HEAD, rows, width, right=(3, 4, 5, 6))
    yield f"{moment(status.at)}  {_counted(status)}"
    if lines:
        yield heads
    for line, worker in zip(lines, status.workers, strict=True):
        yield line
        yield from _running(worker, width)


def _findings(status: Status, command: str) -> Iterator[str]:
    for finding in status.findings[:SHOWN]:
        yield ""
        for line in folded(finding.what):
            yield paint(line, "red")
        mend = f"  -> {command if finding.is_command else ''}{finding.mend}"
        yield from [mend] if finding.is_command else folded(mend)
    if len(status.findings) > SHOWN:
        yield ""
        yield f"and {len(status.findings) - SHOWN} more, which --json has"


def _counted(status: Status) -> str:
    workers = len(status.workers)
    tasks = sum(worker.running_count for worker in status.workers)
    return f"{workers} worker{'s' * (workers != 1)}, {tasks} running"


def _row(worker: Worker, status: Status) -> list[str]:
    since = worker.phase_since or worker.since
    return [
        worker.name,
        paint(worker.phase, COLOURS.get(worker.phase, "red")),
        duration((status.at - since).total_seconds()),
        duration(worker.seconds_left),
        f"{worker.running_count}/{worker.concurrency}",
        "-" if worker.claims is None else str(worker.claims),
        duration(worker.loop_lag),
    ]


def _running(worker: Worker, width: int) -> Iterator[str]:
    rows = [[f"  {task.task}", task.id, duration(task.seconds)] for task in worker.running]
    if not rows:
        return
    _, *lines = table(["", "", ""], rows, width, right=(2,))
    for line, task in zip(lines, worker.running, strict=True):
        yield line
        said = _saved(task)
        if said:
            yield f"    {said}"[:width]
    if worker.running_count > len(rows):
        yield f"  and {worker.running_count - len(rows)} more"


def _saved(task: RunningTask) -> str:
    saved = task.checkpoint
    if saved is None:
        return ""
    times = f"interrupted {saved.interruptions} times".replace(" 1 times", " once")
    anew = "and has saved nothing" * saved.is_empty
    said = (shown(saved.where), *(times, anew) * bool(saved.interruptions))
    return ", ".join(filter(None, said))

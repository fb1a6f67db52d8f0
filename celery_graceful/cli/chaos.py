"""``celery graceful chaos``: kill a worker, and see that others take over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

import click

from celery_graceful.cli.app import command_of, operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    YES,
    Command,
    Seconds,
    ask,
    duration,
    moment,
    paint,
    say_json,
    shown,
    terminal_width,
)
from celery_graceful.cli.progress import Working
from celery_graceful.cli.writing import Group
from celery_graceful.operations.killing import CannotKill
from celery_graceful.operations.records import Kill, KilledTask, Worker

__all__ = ["chaos", "lines_of", "summary_of", "warnings_of"]

COLOURS = {"running": "green", "done": "green", "back": "yellow"}


@click.group(cls=Group)
def chaos() -> None:
    """Break something on purpose, and see what becomes of it."""


@chaos.command("kill-worker", cls=Command)
@click.argument("worker")
@YES
@JSON
@click.option(
    "--timeout",
    type=Seconds(min=0),
    default=60.0,
    show_default=True,
    help="Seconds in which its tasks have to run again.",
)
@click.pass_context
def kill_worker(ctx: click.Context, worker: str, yes: bool, as_json: bool, timeout: float) -> int:
    """Kill WORKER, on this machine, by SIGKILL, and say when each of its tasks ran again.

    The processes of its pool end with it. Of each task that runs there a death is counted. Exits
    with 1 if one does not run again within the timeout.
    """
    operations = operations_of(ctx)
    width = terminal_width()
    try:
        victim, others = operations.to_kill(worker)
        for warning in warnings_of(victim, others):
            click.echo(paint(warning, "red"), err=True)
        runs = f"{victim.running_count} running task{'s' * (victim.running_count != 1)}"
        ask(f"Kill {victim.name}, process {victim.pid}, with {runs}?", yes)

        with Working("waits until its tasks run again") as working:

            def say(tasks: Sequence[KilledTask]) -> None:
                for line in () if as_json else lines_of(tasks, width):
                    working.echo(line)

            found = operations.kill_worker(victim.id, timeout=timeout, on_change=say)
    except CannotKill as exc:
        click.echo(shown(f"Error: {exc}"), err=True)
        return FOUND
    if as_json:
        say_json(found.to_dict())
    else:
        for line in summary_of(found, width):
            click.echo(line)
        if any(task.state == "held" for task in found.tasks):
            click.echo(f"  -> {command_of(ctx)}rescue")
    return FINE if found.is_well else FOUND


def warnings_of(victim: Worker, others: Sequence[Worker]) -> Iterator[str]:
    """What will not go on without it."""
    if not others:
        yield "No other worker is running: what it holds waits until one is started."
        return
    consumed = {queue for other in others if other.fetches for queue in other.queues}
    alone = sorted(set(victim.queues) - consumed)
    if alone:
        queues = shown(", ".join(alone))
        yield f"No other worker fetches from {queues}: what comes from there waits."


def lines_of(tasks: Sequence[KilledTask], width: int) -> Iterator[str]:
    """What is printed of tasks whose state has changed; of those that had not begun, how many."""
    for task in tasks:
        if task.begun and task.state != "unknown":  # that may change
            yield from _task(task, width)
    back = [task for task in tasks if not task.begun and task.is_well]
    if back:
        after = duration(back[0].seconds)
        yield f"{_messages(len(back))} that had not begun went back, after {after}"


def summary_of(found: Kill, width: int) -> Iterator[str]:
    """What is printed at the end."""
    for task in found.tasks:
        if task.begun and task.state in ("held", "unknown"):
            yield from _task(task, width)
    ran = [task for task in found.tasks if task.begun]
    well = [task for task in ran if task.is_well]
    held = [task for task in found.tasks if not task.begun and not task.is_well]
    yield f"{shown(found.name)} was killed at {moment(found.at)}"
    if held:
        yield paint(f"{_messages(len(held))} that had not begun did not go back", "red")
    if not ran:
        yield "it ran nothing"
        return
    last = max((task.seconds or 0.0 for task in well), default=0.0)
    said = f"{len(well)} of {len(ran)} tasks ran again within {duration(found.seconds)}"
    if well and len(well) == len(ran):
        said = f"all {len(ran)} tasks ran again, the last one after {duration(last)}"
        said = said.replace("all 1 tasks", "its task").replace(", the last one", "")
    yield paint(said, "green" if found.is_well else "red")


def _task(task: KilledTask, width: int) -> Iterator[str]:
    said = {
        "held": "still claimed by who was killed: nobody has given it back",
        "back": "back in its queue",
        "running": f"runs again on {task.worker}",
        "done": task.said,
        "quarantined": task.said,
        "lost": f"lost: {task.said}",
        "unknown": f"not found: {task.said}",
    }[task.state]
    if task.state == "running" and task.said:
        said += f", {task.said}"
    if task.state == "back" and task.worker:
        said = f"{task.worker} holds it, and has not begun it"
    yield shown(f"{task.task}  {task.id}")
    after = "" if task.seconds is None else f", after {duration(task.seconds)}"
    for number, line in enumerate(wrap(shown(said) + after, width - 4, break_on_hyphens=False)):
        yield ("    " if number else "  ") + paint(line, COLOURS.get(task.state, "red"))


def _messages(count: int) -> str:
    return f"{count} message{'s' * (count != 1)}"

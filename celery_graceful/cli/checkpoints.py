"""``celery graceful checkpoints``: what tasks have saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import click

from celery_graceful.cli.app import operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    YES,
    Command,
    ask,
    duration,
    say_json,
    shown,
    table,
    terminal_width,
)
from celery_graceful.cli.progress import Working
from celery_graceful.cli.writing import Group
from celery_graceful.operations.records import Checkpoint, Done

__all__ = ["checkpoints", "lines_of"]

HEAD = ["TASK", "ID", "INTERRUPTED", "BYTES"]


@click.group(cls=Group)
def checkpoints() -> None:
    """What tasks have saved, to go on from when they run again."""


@checkpoints.command("list", cls=Command)
@JSON
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> int:
    """All of them. This walks through all keys of the store."""
    operations = operations_of(ctx)
    with Working("looks at all keys of the store"):
        found = sorted(operations.checkpoints(), key=lambda one: (one.task, one.id))
    if as_json:
        say_json([one.to_dict() for one in found])
        return FINE
    for line in lines_of(found, terminal_width()):
        click.echo(line)
    if not found:
        click.echo("nothing is saved", err=True)
    return FINE


@checkpoints.command(cls=Command)
@click.argument("task_id")
@JSON
@click.pass_context
def show(ctx: click.Context, task_id: str, as_json: bool) -> int:
    """One of them: loops, steps, state. Exits with 1 if there is none."""
    operations = operations_of(ctx)
    with Working("looks for it"):
        found = operations.checkpoint(task_id)
    if as_json:
        say_json(None if found is None else found.to_dict())
    if found is None:
        click.echo(f"nothing is saved of {shown(task_id)}", err=True)
        return FOUND
    if as_json:
        return FINE
    said = shown(found.to_dict())
    click.echo(shown(f"{found.task}  {found.id}  {found.where}").rstrip())
    click.echo(f"  interrupted: {found.interruptions}")
    for loop in said["loops"]:
        state = "has ended" if loop["ended"] else f"has done {loop['cursor']}"
        click.echo(f"  loop {shown(unquote(loop['name']))}: {state}")
    for step in found.steps:
        click.echo(f"  step {shown(unquote(step))}: done")
    if found.own_cursor:
        click.echo("  it keeps a cursor of its own, and goes on from there")
    if found.state is not None:
        click.echo(f"  state: {said['state']}")
    click.echo(f"  {found.bytes} bytes, forgotten in {duration(found.expires_in)}")
    return FINE


@checkpoints.command(cls=Command)
@click.argument("task_id")
@YES
@JSON
@click.pass_context
def clear(ctx: click.Context, task_id: str, yes: bool, as_json: bool) -> int:
    """Delete one: the task's next run starts over."""
    operations = operations_of(ctx)
    found = operations.checkpoint(task_id)
    if found is not None:
        where = found.where or "what it has done"
        ask(f"{found.task} {task_id} ({where}) will start over. Delete what it has saved?", yes)
    ok = found is not None and operations.clear_checkpoint(task_id, found.task)
    if as_json:
        say_json(Done(task_id, ok, "cleared" if ok else "nothing is saved").to_dict())
    elif ok:
        click.echo(f"{shown(task_id)} cleared")
    else:
        click.echo(f"nothing is saved of {shown(task_id)}", err=True)
    return FINE if ok else FOUND


def lines_of(found: Sequence[Checkpoint], width: int) -> Iterator[str]:
    """What is printed of them."""
    if not found:
        return
    found = shown(list(found))
    rows = [[one.task, one.id, str(one.interruptions), str(one.bytes)] for one in found]
    head, *lines = table(HEAD, rows, width, right=(2, 3))
    yield head
    for line, one in zip(lines, found, strict=True):
        yield line
        if one.where:
            yield f"  {shown(one.where)}"[:width]

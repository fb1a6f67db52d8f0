"""``celery graceful why``: where a task is, and why it does not run."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

import click

from celery_graceful.cli.app import command_of, operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    Command,
    not_empty,
    paint,
    say_json,
    shown,
    terminal_width,
)
from celery_graceful.cli.progress import Working
from celery_graceful.operations.records import Why

__all__ = ["lines_of", "why"]


@click.command(cls=Command)
@click.argument("task_id", callback=not_empty)
@JSON
@click.pass_context
def why(ctx: click.Context, task_id: str, as_json: bool) -> int:
    """Where a task is, and what it waits for.

    Exits with 1 if it does not run until somebody does something, or nobody has heard of it.
    """
    operations = operations_of(ctx)
    with Working("looks for it"):
        found = operations.why(task_id)
    if as_json:
        say_json(found.to_dict())
    else:
        for line in lines_of(found, terminal_width(), command_of(ctx)):
            click.echo(line)
    return FOUND if found.stuck else FINE


def lines_of(found: Why, width: int, command: str) -> Iterator[str]:
    """What is printed of it.

    Args:
        found: It.
        width: Columns of the terminal.
        command: In front of what mends.
    """
    found = shown(found)
    state = paint(found.state, "red" if found.stuck else "green")
    yield f"{found.id}  {state}  {found.task}".rstrip()
    for sentence in found.sentences:
        yield from wrap(
            sentence,
            width,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    if found.mend:
        yield f"  -> {command}{found.mend}"

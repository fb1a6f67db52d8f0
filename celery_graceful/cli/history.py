"""``celery graceful history`` and ``deploy mark``: what has happened, and since which deploy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap

import click

from celery_graceful.cli.app import operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    Command,
    moment,
    not_empty,
    paint,
    say_json,
    shown,
    terminal_width,
)
from celery_graceful.cli.progress import Working
from celery_graceful.cli.writing import Group
from celery_graceful.operations.records import History, Moment

__all__ = ["deploy", "history", "lines_of"]

COLOURS = {"deploy": "cyan", "released": "green", "resumed": "green", "resent": "green"}


@click.command(cls=Command)
@click.argument("task_id", required=False)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="So many moments; deploys are always named.",
)
@JSON
@click.pass_context
def history(ctx: click.Context, task_id: str | None, last: int, as_json: bool) -> int:
    """What was unusual in a task's life, or in that of all; a deploy with what it did.

    Exits with 1 if nothing is known of a task that was named.
    """
    operations = operations_of(ctx)
    with Working("reads the history"):
        found = operations.history(task_id)
    if as_json:
        say_json(found.to_dict())
    else:
        for line in lines_of(found, terminal_width(), last):
            click.echo(line)
        if not found.moments:
            click.echo(
                f"nothing unusual is known{f' of {shown(task_id)}' * bool(task_id)}", err=True
            )
    return FOUND if task_id and not found.moments else FINE


@click.group(cls=Group)
def deploy() -> None:
    """Deploys, in the history of the fleet."""


@deploy.command(cls=Command)
@click.argument("text", callback=not_empty)
@JSON
@click.pass_context
def mark(ctx: click.Context, text: str, as_json: bool) -> int:
    """Enter a deploy: what happens from now on, ``history`` shows as what it did."""
    entered = operations_of(ctx).mark_deploy(text)
    if as_json:
        say_json(entered.to_dict())
    else:
        click.echo(f"{moment(entered.at)}  deploy  {shown(entered.reason)}")
    return FINE


def lines_of(found: History, width: int, last: int = 100) -> Iterator[str]:
    """What is printed of it.

    Args:
        found: It.
        width: Columns of the terminal.
        last: So many moments, besides deploys.
    """
    found = shown(found)
    deploys = iter(found.deploys)
    others = sum(each.kind != "deploy" for each in found.moments)
    left_out = max(0, others - last)
    if left_out:
        yield f"{left_out} earlier one{'s are' if left_out > 1 else ' is'} left out"
    for each in found.moments:
        if each.kind == "deploy":
            yield f"{moment(each.at)}  {paint('deploy', COLOURS['deploy'])}  {each.reason}"
            yield from _indented(_counted(next(deploys).counts), width)
        elif left_out:
            left_out -= 1
        else:
            yield from _moment(each, width, of_one=bool(found.id))


def _moment(each: Moment, width: int, *, of_one: bool) -> Iterator[str]:
    kind = paint(each.kind.replace("_", " "), COLOURS.get(each.kind, "yellow"))
    who = "" if of_one else " ".join(filter(None, (each.task, each.id)))
    if each.count > 1 or not (each.id or of_one):
        who = f"{each.count} task{'s' * (each.count != 1)}"
    line = "  ".join(filter(None, (moment(each.at), kind, who)))
    if len(click.unstyle(line)) > width:
        line = f"{moment(each.at)}  {kind}\n  {who}"
    yield from line.splitlines()
    on = f"on {each.worker}" if each.worker else ""
    said = ", ".join(filter(None, (on, each.reason, each.where)))
    yield from _indented(said, width)


def _counted(counts: Mapping[str, int]) -> str:
    said = [f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items()]
    return ", ".join(said) or "nothing unusual since"


def _indented(text: str, width: int) -> Iterator[str]:
    yield from wrap(
        text,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )

"""``celery graceful quarantine``: look at tasks in quarantine, send them again, drop them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from celery_graceful.cli.app import command_of, operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    YES,
    Command,
    ask,
    counted,
    folded,
    moment,
    say_done,
    say_json,
    shown,
)
from celery_graceful.cli.writing import Group
from celery_graceful.operations.quarantine import Quarantine, QuarantinedTask

__all__ = ["line_of", "quarantine"]

ALL = click.option("--all", "everything", is_flag=True, help="All that this app has in quarantine.")


@click.group(cls=Group)
def quarantine() -> None:
    """Messages that are not run again: why, and send them again.

    Their process died too often, nobody has known their task, or no task can be made of them.
    """


@quarantine.command("list", cls=Command)
@JSON
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> int:
    """What is in quarantine, oldest first. Exits with 1 if something is."""
    found = operations_of(ctx).quarantine.tasks()
    status = FOUND if found else FINE
    if as_json:
        say_json([task.to_dict() for task in found])
        return status
    for task in found:
        for line in folded(line_of(task)):
            click.echo(line)
    if not found:
        click.echo("nothing is in quarantine", err=True)
    else:
        command = f"{command_of(ctx)}quarantine"
        click.echo(f"  -> {command} show ID", err=True)
        click.echo(f"  -> {command} retry ID, when it is mended", err=True)
    return status


@quarantine.command(cls=Command)
@click.argument("task_id")
@click.option("--json", "as_json", is_flag=True, help="It is a JSON document anyway.")
@click.pass_context
def show(ctx: click.Context, task_id: str, as_json: bool) -> int:
    """One task with its message. Exits with 1 if it is not there."""
    found = operations_of(ctx).quarantine.task(task_id)
    if found is None:
        if as_json:
            say_json(None)
        click.echo(f"Error: {shown(task_id)} is not in quarantine", err=True)
        return FOUND
    click.echo(json.dumps(found.to_dict(), indent=2))
    return FINE


@quarantine.command(cls=Command)
@click.argument("task_ids", nargs=-1)
@ALL
@JSON
@click.pass_context
def retry(ctx: click.Context, task_ids: tuple[str, ...], everything: bool, as_json: bool) -> int:
    """Send tasks again, to the tail of their queues; their deaths are forgotten.

    What somebody else sends at the same time is sent once, and that is no failure.
    """
    tasks = operations_of(ctx).quarantine
    chosen = _chosen(tasks, task_ids, everything)
    return say_done((tasks.retry(one, listed=everything) for one in chosen), as_json)


@quarantine.command("delete", cls=Command)
@click.argument("task_ids", nargs=-1)
@ALL
@YES
@JSON
@click.pass_context
def delete_(
    ctx: click.Context, task_ids: tuple[str, ...], everything: bool, yes: bool, as_json: bool
) -> int:
    """Drop tasks and their messages, for good."""
    tasks = operations_of(ctx).quarantine
    chosen = _chosen(tasks, task_ids, everything)
    there = {task.id for task in tasks.tasks()}.intersection(chosen)
    if there:
        ask(f"Delete {counted(len(there), 'task')}, with all that was sent, for good?", yes)
    return say_done((tasks.delete(one, listed=everything) for one in chosen), as_json)


def _chosen(tasks: Quarantine, task_ids: Sequence[str], everything: bool) -> Sequence[str]:
    if bool(task_ids) == everything:
        raise click.UsageError("name tasks, or give --all")
    if not everything:
        return task_ids
    found = tasks.tasks()
    ours = [task.id for task in found if task.ours]
    if len(ours) < len(found):
        click.echo(f"{len(found) - len(ours)} of other apps are left alone", err=True)
    return ours


def line_of(task: QuarantinedTask) -> str:
    """What is printed of one of them."""
    task = shown(task)
    whose = "" if task.ours else f"  (of another app: {task.app or '?'})"
    return f"{moment(task.at)}  {task.id}  {task.task}  {task.why}{whose}"

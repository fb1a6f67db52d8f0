"""``celery graceful quiet``, ``resume`` and ``stop``: what workers are told to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from celery_graceful.cli.app import operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    YES,
    Command,
    Seconds,
    ask,
    say_json,
    shown,
)
from celery_graceful.cli.progress import Working
from celery_graceful.operations.records import Answer

__all__ = ["quiet", "resume", "stop"]

WAIT = click.option(
    "--wait",
    type=Seconds(min=0),
    default=1.0,
    show_default=True,
    help="Seconds that a worker gets.",
)


@click.command(cls=Command)
@click.argument("worker", required=False)
@YES
@JSON
@WAIT
@click.pass_context
def quiet(ctx: click.Context, worker: str | None, yes: bool, as_json: bool, wait: float) -> int:
    """Have WORKER fetch nothing more, or all workers: a deploy's first step.

    What it has not started goes back to its queue, what runs goes on. Asks, for all.
    """
    if worker is None:
        ask("Nothing new is started until you resume them. Have all workers be quiet?", yes)
    return _told(operations_of(ctx, wait=wait).quiet, [worker], as_json)


@click.command(cls=Command)
@click.argument("worker", required=False)
@JSON
@WAIT
@click.pass_context
def resume(ctx: click.Context, worker: str | None, as_json: bool, wait: float) -> int:
    """Have WORKER, or all workers, that are quiet fetch again."""
    return _told(operations_of(ctx, wait=wait).resume, [worker], as_json)


@click.command(cls=Command)
@click.argument("worker")
@YES
@JSON
@WAIT
@click.pass_context
def stop(ctx: click.Context, worker: str, yes: bool, as_json: bool, wait: float) -> int:
    """Drain WORKER: its tasks finish or are interrupted within its grace, then it ends."""
    ask(f"Have {worker} drain, and end?", yes)
    return _told(operations_of(ctx, wait=wait).stop, [worker], as_json)


def _told(tell: Callable[..., Sequence[Answer]], args: Sequence[str | None], as_json: bool) -> int:
    with Working("waits for answers"):
        answers = tell(*args)
    if as_json:
        say_json([answer.to_dict() for answer in answers])
    else:
        for answer in answers:
            click.echo(shown(f"{answer.worker}  {answer.said}"))
        if not answers:
            click.echo("no worker is running", err=True)
    return FINE if answers and all(answer.ok for answer in answers) else FOUND

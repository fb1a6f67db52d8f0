"""``celery graceful claims``: which messages workers hold."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence

import click

from celery_graceful.cli.app import command_of, operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    Command,
    duration,
    paint,
    say_json,
    shown,
    table,
    terminal_width,
)
from celery_graceful.cli.progress import Working
from celery_graceful.operations.records import Claim

__all__ = ["claims", "lines_of"]


@click.command(cls=Command)
@click.argument("worker", required=False)
@JSON
@click.pass_context
def claims(ctx: click.Context, worker: str | None, as_json: bool) -> int:
    """Messages that workers hold, or one WORKER: what runs, and what waits for what.

    Of the dead, too, until others have given them back to their queues: exits with 1 if there are
    such.
    """
    operations = operations_of(ctx)
    with Working("reads claims"):
        found = list(operations.claims(worker))
        of_dead = any(not claim.worker_lives for claim in found)
        doubted = of_dead and bool(operations.no_writes())
    status = FOUND if of_dead else FINE
    if as_json:
        say_json([claim.to_dict() for claim in found])
        return status
    now = dt.datetime.now(dt.timezone.utc)
    for line in lines_of(found, now, terminal_width(), doubted=doubted):
        click.echo(line)
    if not found:
        unknown = "the broker is not Redis: it alone knows who holds what; what runs:"
        click.echo(
            "no message is claimed"
            if operations.has_claims
            else f"{unknown} {command_of(ctx)}status",
            err=True,
        )
    return status


def lines_of(
    claims: Sequence[Claim], now: dt.datetime, width: int, *, doubted: bool = False
) -> Iterator[str]:
    """What is printed of them, worker by worker; ``doubted``: no lease could be renewed."""
    claims = shown(list(claims))
    gone = "its lease could not be renewed" if doubted else "dead: they wait to be given back"
    for worker in dict.fromkeys(claim.worker for claim in claims):
        some = [claim for claim in claims if claim.worker == worker]
        alive = "" if some[0].worker_lives else paint(f"  {gone}", "red")
        yield f"{worker}  {len(some)} claims{alive}".replace("  1 claims", "  1 claim")
        rows = [[f"  {c.task or '?'}", c.id or "?", c.queue, _state(c, now)] for c in some]
        _, *lines = table(["", "", "", ""], rows, width, elastic=(0, 2))
        yield from lines


def _state(claim: Claim, now: dt.datetime) -> str:
    if claim.begun:
        return "begun"
    if claim.eta is not None and claim.eta > now:
        return f"in {duration((claim.eta - now).total_seconds())}"
    return "waits"

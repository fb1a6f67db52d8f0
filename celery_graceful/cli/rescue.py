"""``celery graceful rescue``: give dead workers' claims back now, where no worker does."""

from __future__ import annotations

from collections.abc import Iterator

import click

from celery_graceful.cli.app import operations_of
from celery_graceful.cli.output import AWAY, FINE, FOUND, JSON, Command, folded, say_json, shown
from celery_graceful.cli.progress import Working
from celery_graceful.operations.rescue import Rescued
from celery_graceful.operations.waiting import say_waiting
from celery_graceful.store.app_stores import settings_of

__all__ = ["lines_of", "rescue"]


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Only say what there is to rescue.")
@JSON
@click.pass_context
def rescue(ctx: click.Context, dry_run: bool, as_json: bool) -> int:
    """Give the claims of dead workers back to their queues.

    Running workers do so by themselves every few seconds, and RabbitMQ does at once. Where none
    runs, what waits for a worker that knows its task goes back as well. Exits with 1 if something
    is left to rescue, as with --dry-run, or one of several servers does not answer.
    """
    operations = operations_of(ctx)
    lease = settings_of(operations.app).lease_ttl
    with Working("gives back"):
        found = operations.rescue(dry_run=dry_run)
    if as_json:
        say_json([one.to_dict() for one in found])
    elif not found:
        said = "the broker gives back by itself what a dead worker held: there is nothing to rescue"
        click.echo("\n".join(folded(said)), err=True)
    for one in found:
        if one.error:
            click.echo(shown(f"Error: {one.error}"), err=True)
        for text, is_note in () if as_json else lines_of(one, lease, dry_run):
            for line in folded(shown(text)):
                click.echo(line, err=is_note)
    if found and all(one.error for one in found):
        return AWAY
    return FOUND if any(one.error or _is_left(one) for one in found) else FINE


def _is_left(found: Rescued) -> bool:
    """Whether a dead worker still holds something, or something waits that nobody looks after."""
    held = found.moved is None or found.trusted_in > 0
    return (held and sum(found.dead.values()) > (found.moved or 0)) or (
        sum(found.waiting.values()) > (found.returned or 0)
    )


def lines_of(found: Rescued, lease: float, dry_run: bool) -> Iterator[tuple[str, bool]]:
    """What is printed of one server, and whether that is but a note.

    Args:
        found: It.
        lease: Seconds that a lease lives.
        dry_run: Nothing was to be done.
    """
    for worker, claims in found.dead.items():
        state = "has no lease" if found.error else "is dead"
        yield f"{worker} {state} and holds {claims} claim{'s' * (claims != 1)}", False
    if found.waiting:
        yield say_waiting(found.waiting, is_seen=False), False
    if found.error:
        return
    if not found.dead and not found.waiting:
        yield (
            (
                "no worker is dead: there is nothing to rescue; one that was killed counts as dead "
                f"{lease:g} s after its last heartbeat"
            ),
            True,
        )
    if found.trusted_in:
        yield (
            (
                "Redis has just started, or is another server than before: nobody can be taken for "
                f"dead for {found.trusted_in:.0f} s more"
            ),
            True,
        )
    if found.dead and not dry_run:
        said = "somebody else is at it" if found.moved is None else f"{found.moved} went back"
        yield said, False
    if found.returned is not None:
        yield f"{found.returned} that waited went back", False
    if found.waiting:
        yield "a plain worker that gets one and does not know its task discards it", True

"""``celery graceful rescue``: give dead workers' claims back now, where no worker does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
from kombu.transport import virtual

from celery_graceful.claims.claimant import FALLEN, claims_key
from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.lease import dead_workers
from celery_graceful.claims.rescue import Rescuer
from celery_graceful.cli.app import app_of
from celery_graceful.cli.output import (
    AWAY,
    FINE,
    FOUND,
    JSON,
    CannotReach,
    Command,
    folded,
    say_json,
)
from celery_graceful.cli.progress import Working
from celery_graceful.operations.records import Record
from celery_graceful.poison.deaths import judge
from celery_graceful.store.app_stores import broker_stores, settings_of
from celery_graceful.store.store import Store, StoreAway

__all__ = ["rescue"]


@dataclass(frozen=True)
class Rescued(Record):
    """What was done on one server.

    Attributes:
        server: Its address.
        dead: Ids of workers that were dead there, each with how many claims it held.
        moved: Claims that went back; ``None`` where nobody was to be rescued, or by somebody else.
        trusted_in: Seconds for which nobody can be taken for dead there.
        error: Why it does not answer; empty if it does.
    """

    server: str
    dead: dict[str, int]
    moved: int | None = None
    trusted_in: float = 0.0
    error: str = ""


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Only say what there is to rescue.")
@JSON
@click.pass_context
def rescue(ctx: click.Context, dry_run: bool, as_json: bool) -> int:
    """Give the claims of dead workers back to their queues.

    Running workers do so by themselves every few seconds.
    """
    app = app_of(ctx)
    stores = broker_stores(app)
    if not stores:
        with app.connection_for_read() as connection:
            by_itself = not isinstance(connection.transport, virtual.Transport)
        raise CannotReach(
            "the broker is not Redis: it gives back by itself"
            if by_itself
            else "the broker is not Redis: what a dead worker held is lost, or comes back after a "
            "time-out of the broker's own"
        )
    say = _silent if as_json else _say
    found = [_rescue(app, store, dry_run, say) for store in stores]
    if as_json:
        say_json([one.to_dict() for one in found])
    if all(one.error for one in found):
        return AWAY
    return FOUND if any(one.error for one in found) else FINE


def _say(text: str, err: bool = False) -> None:
    for line in folded(text):
        click.echo(line, err=err)


def _silent(text: str, err: bool = False) -> None:
    """The document says it."""


def _rescue(app: Any, store: Store, dry_run: bool, say: Callable[..., None]) -> Rescued:
    """On one server."""
    judged = partial(judge, app, store=store)
    rescuer = Rescuer(Claims(store), settings_of(app), judged)
    dead: dict[str, int] = {}
    moved, seconds = None, 0.0
    try:
        for worker in sorted({*dead_workers(store), *store.execute("SMEMBERS", [FALLEN])}):
            dead[worker] = int(store.execute("HLEN", [claims_key(worker)]))
            say(f"{worker} is dead and holds {dead[worker]} claims")
        if not dead:
            lease = settings_of(app).lease_ttl
            say(
                "no worker is dead: there is nothing to rescue; one that was killed counts as "
                f"dead {lease:g} s after its last heartbeat",
                err=True,
            )
        elif not dry_run:
            seconds = rescuer.lease_validity.seconds()
            if seconds:
                say(
                    "Redis has just started, or is another server than before: nobody can be "
                    f"taken for dead for {seconds:.0f} s more",
                    err=True,
                )
            with Working("gives back"):
                moved = rescuer.look()
            say("somebody else is at it" if moved is None else f"{moved} went back")
    except StoreAway as exc:
        click.echo(f"Error: {exc}", err=True)
        return Rescued(store.address, dead, moved, seconds, str(exc))
    return Rescued(store.address, dead, moved, seconds)

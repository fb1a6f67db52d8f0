"""``celery graceful rescue``: give dead workers' claims back now, where no worker does."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from kombu.transport import virtual

from celery_graceful.claims.claimant import FALLEN, claims_key
from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.lease import dead_workers
from celery_graceful.claims.rescue import Rescuer
from celery_graceful.cli.app import app_of
from celery_graceful.cli.output import Command
from celery_graceful.cli.progress import Working
from celery_graceful.poison.deaths import judge
from celery_graceful.store.app_stores import broker_stores, settings_of
from celery_graceful.store.store import Store, StoreAway

__all__ = ["rescue"]


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Only say what there is to rescue.")
@click.pass_context
def rescue(ctx: click.Context, dry_run: bool) -> None:
    """Give the claims of dead workers back to their queues.

    Running workers do so by themselves every few seconds.
    """
    app = app_of(ctx)
    stores = broker_stores(app)
    if not stores:
        with app.connection_for_read() as connection:
            by_itself = not isinstance(connection.transport, virtual.Transport)
        raise click.ClickException(
            "the broker is not Redis: it gives back by itself"
            if by_itself
            else "the broker is not Redis: what a dead worker held is lost, or comes back after a "
            "time-out of the broker's own"
        )
    away = [store for store in stores if not _rescue(app, store, dry_run)]
    if len(away) == len(stores):
        raise SystemExit(1)


def _rescue(app: Any, store: Store, dry_run: bool) -> bool:
    """On one server; whether it answered."""
    judged = partial(judge, app, store=store)
    rescuer = Rescuer(Claims(store), settings_of(app), judged)
    try:
        dead = {*dead_workers(store), *store.execute("SMEMBERS", [FALLEN])}
        for worker in sorted(dead):
            held = store.execute("HLEN", [claims_key(worker)])
            click.echo(f"{worker} is dead and holds {held} claims")
        if not dead:
            lease = settings_of(app).lease_ttl
            click.echo(
                "no worker is dead: there is nothing to rescue; one that was killed counts as "
                f"dead {lease:g} s after its last heartbeat",
                err=True,
            )
        elif not dry_run:
            seconds = rescuer.lease_validity.seconds()
            if seconds:
                click.echo(
                    "Redis has just started, or is another server than before: nobody can be "
                    f"taken for dead for {seconds:.0f} s more",
                    err=True,
                )
            with Working("gives back"):
                moved = rescuer.look()
            click.echo("somebody else is at it" if moved is None else f"{moved} went back")
    except StoreAway as exc:
        click.echo(f"Error: {exc}", err=True)
        return False
    return True

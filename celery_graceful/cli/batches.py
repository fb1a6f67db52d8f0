"""``celery graceful batches``: look at batches, and mend those that do not end."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from celery_graceful.batches.callback_publishing import publish_due
from celery_graceful.batches.findings import Missing, noted
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.manual_remedies import CallbackRuns, Remedies
from celery_graceful.batches.model import CALLBACKS, Due
from celery_graceful.batches.status import State, Status
from celery_graceful.cli.app import app_of, command_of
from celery_graceful.cli.output import JSON_LINES, Command, folded
from celery_graceful.cli.progress import Working
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import StoreAway

__all__ = ["batches"]

IDS = click.argument("batch_ids", nargs=-1, required=True)


@click.group()
def batches() -> None:
    """Batches, what they wait for, and three remedies for one that does not end.

    Send again what is missing, run the callback now, or complete it by force.
    """


@batches.command("list", cls=Command)
@JSON_LINES
@click.option("--missing", "only_missing", is_flag=True, help="Only those that miss members.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool, only_missing: bool) -> None:
    """Batches that have not ended, that which has not moved for longest first."""
    with _errors():
        found = [s for s in _remedies(ctx).unfinished() if s.missing or not only_missing]
    for status in found:
        for line in [json.dumps(status.summary())] if as_json else folded(_line(status)):
            click.echo(line)
    if not found:
        click.echo("no batch is unfinished" if not only_missing else "nothing is missing", err=True)
    elif not as_json and any(status.missing for status in found):
        click.echo(f"  -> {command_of(ctx)}batches show ID", err=True)


@batches.command(cls=Command)
@click.argument("batch_id")
@JSON_LINES
@click.option("--look", is_flag=True, help="Look for missing members now: it takes some seconds.")
@click.pass_context
def show(ctx: click.Context, batch_id: str, as_json: bool, look: bool) -> None:
    """One batch: how it stands, and which members are missing."""
    remedies = _remedies(ctx)
    with _errors():
        with Working("looks for its members"):
            missing = remedies.look(batch_id) if look else list(noted(remedies.ledger, batch_id))
        status = remedies.ledger.status(batch_id)
    shown = {**status.summary(), "missing_members": [one._asdict() for one in missing]}
    if as_json:
        click.echo(json.dumps(shown))
        return
    for line in _lines(status, missing):
        click.echo("\n".join(folded(line)))
    if missing:
        click.echo(f"  -> {command_of(ctx)}batches resend {batch_id}", err=True)


@batches.command(cls=Command)
@IDS
@JSON_LINES
@click.option("--member", "members", multiple=True, help="This one, wherever it is.")
@click.option("--unsure", is_flag=True, help="Also those that may be in a queue all the same.")
@click.option("--close", is_flag=True, help="Its producer is dead, and it has all its members.")
@click.pass_context
def resend(
    ctx: click.Context,
    batch_ids: Sequence[str],
    as_json: bool,
    members: Sequence[str],
    unsure: bool,
    close: bool,
) -> None:
    """Send missing members again, under their old ids.

    They are looked for first, which takes some seconds. What has ended in a worker without
    celery_graceful ends as its result says.
    """
    remedies = _remedies(ctx)
    for batch_id in batch_ids:
        with _errors(), Working("looks for its members"):
            done = remedies.resend(batch_id, members, unsure=unsure, close=close)
        if as_json:
            click.echo(json.dumps({"id": batch_id, **done._asdict()}))
            continue
        click.echo(f"{batch_id} {done}")
        for member, why in done.left.items():
            click.echo(f"  {member} left alone: {why}")
        if remedies.ledger.state(batch_id) is State.SENDING:
            click.echo("  it is being sent; if its producer is dead: Batch.resume(), or --close")


@batches.command(cls=Command)
@click.argument("batch_id")
@click.argument("name", type=click.Choice(CALLBACKS))
@JSON_LINES
@click.option("--force", is_flag=True, help="Also if it runs: it runs twice then.")
@click.pass_context
def callback(ctx: click.Context, batch_id: str, name: str, as_json: bool, force: bool) -> None:
    """Run a callback now, whatever the batch waits for.

    Not while a worker runs it: its work would be done twice.
    """
    with _errors():
        sent = _remedies(ctx).callback(batch_id, name, force=force)
    _say(batch_id, f"{name} {'sent' if sent else 'has ended, or is about to be sent'}", as_json)


@batches.command(cls=Command)
@IDS
@JSON_LINES
@click.pass_context
def complete(ctx: click.Context, batch_ids: Sequence[str], as_json: bool) -> None:
    """End batches by force: members that have not ended have failed."""
    _each(batch_ids, _remedies(ctx).complete, "completed", as_json)


@batches.command(cls=Command)
@IDS
@JSON_LINES
@click.pass_context
def drop(ctx: click.Context, batch_ids: Sequence[str], as_json: bool) -> None:
    """Forget batches. Their members run on, and no callback is sent."""
    _each(batch_ids, _remedies(ctx).drop, "dropped", as_json)


def _each(ids: Sequence[str], do: Callable[[str], None], done: str, as_json: bool) -> None:
    for batch_id in ids:
        with _errors():
            do(batch_id)
        _say(batch_id, done, as_json)


def _say(batch_id: str, done: str, as_json: bool) -> None:
    click.echo(json.dumps({"id": batch_id, "done": done}) if as_json else f"{batch_id} {done}")


def _remedies(ctx: click.Context) -> Remedies:
    app = app_of(ctx)
    store = find_store(app)
    if store is None:
        raise click.ClickException(
            "there is no Redis to keep batches in: neither the broker nor the result backend is "
            "one, and graceful_store is not set"
        )

    def publish(due: Sequence[Due]) -> None:
        for one in due:
            try:
                publish_due(app, store, one)
            except Exception as exc:
                raise click.ClickException(f"{one.name} is sent by a worker: {exc!r}") from exc

    return Remedies(app, BatchLedger(store), publish)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (StoreAway, UnknownBatch, CallbackRuns) as exc:
        raise click.ClickException(str(exc)) from exc


def _lines(status: Status, missing: Sequence[Missing]) -> Iterator[str]:
    yield _line(status)
    for name, state in status.callbacks.items():
        yield f"  {name}: {state}"
    for name in ("created", "moved", "finished"):
        at = getattr(status, name)
        if at is not None:
            yield f"  {name}: {_time(at)}"
    for name in ("parent", "properties"):
        if getattr(status, name):
            yield f"  {name}: {getattr(status, name)}"
    for one in missing:
        yield f"  missing: {one.member}  {one.why}{'' if one.sure else ' (unsure)'}"


def _line(status: Status) -> str:
    parts: list[Any] = [
        f"{status.pending} of {status.total} pending",
        f"{status.succeeded} succeeded",
        f"{status.failed} failed",
        f"{status.revoked} revoked",
        f"{status.missing} missing",
    ]
    kind = "" if status.kind == "batch" else f" {status.kind}"
    said = f"  {status.description}" if status.description else ""
    state = f"{status.state.value}{kind}"
    return f"{_time(status.moved)}  {status.id}  {state}: {', '.join(parts)}{said}"


def _time(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.timezone.utc).isoformat(" ", "seconds")

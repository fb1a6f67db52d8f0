"""``celery graceful batches``: look at batches, and mend those that do not end."""

from __future__ import annotations

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
from celery_graceful.cli.output import (
    JSON,
    CannotReach,
    Command,
    folded,
    moment,
    say_done,
    say_json,
)
from celery_graceful.cli.progress import Working
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.operations.records import Done, utc
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
@JSON
@click.option("--missing", "only_missing", is_flag=True, help="Only those that miss members.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool, only_missing: bool) -> None:
    """Batches that have not ended, that which has not moved for longest first."""
    remedies = _remedies(ctx)
    found = [s for s in remedies.unfinished() if s.missing or not only_missing]
    if as_json:
        say_json([_document(s, _noted(remedies, s.id) if s.missing else []) for s in found])
        return
    for status in found:
        for line in folded(_line(status)):
            click.echo(line)
    if not found:
        click.echo("no batch is unfinished" if not only_missing else "nothing is missing", err=True)
    elif any(status.missing for status in found):
        click.echo(f"  -> {command_of(ctx)}batches show ID", err=True)


@batches.command(cls=Command)
@click.argument("batch_id")
@JSON
@click.option("--look", is_flag=True, help="Look for missing members now: it takes some seconds.")
@click.pass_context
def show(ctx: click.Context, batch_id: str, as_json: bool, look: bool) -> None:
    """One batch: how it stands, and which members are missing."""
    remedies = _remedies(ctx)
    with _unknown_is_an_error():
        with Working("looks for its members"):
            missing = remedies.look(batch_id) if look else _noted(remedies, batch_id)
        status = remedies.ledger.status(batch_id)
    if as_json:
        say_json(_document(status, missing))
        return
    for line in _lines(status, missing):
        click.echo("\n".join(folded(line)))
    if missing:
        click.echo(f"  -> {command_of(ctx)}batches resend {batch_id}", err=True)


@batches.command(cls=Command)
@IDS
@JSON
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
    said: list[dict[str, Any]] = []
    for batch_id in batch_ids:
        with _unknown_is_an_error(), Working("looks for its members"):
            done = remedies.resend(batch_id, members, unsure=unsure, close=close)
        said.append({"id": batch_id, **done._asdict()})
        if as_json:
            continue
        click.echo(f"{batch_id} {done}")
        for member, why in done.left.items():
            click.echo(f"  {member} left alone: {why}")
        if remedies.ledger.state(batch_id) is State.SENDING:
            click.echo("  it is being sent; if its producer is dead: Batch.resume(), or --close")
    if as_json:
        say_json(said)


@batches.command(cls=Command)
@click.argument("batch_id")
@click.argument("name", type=click.Choice(CALLBACKS))
@JSON
@click.option("--force", is_flag=True, help="Also if it runs: it runs twice then.")
@click.pass_context
def callback(ctx: click.Context, batch_id: str, name: str, as_json: bool, force: bool) -> int:
    """Run a callback now, whatever the batch waits for.

    Not while a worker runs it: its work would be done twice.
    """
    remedies = _remedies(ctx)

    def send(batch: str) -> str:
        sent = remedies.callback(batch, name, force=force)
        return f"{name} {'sent' if sent else 'has ended, or is about to be sent'}"

    return _each([batch_id], send, as_json)


@batches.command(cls=Command)
@IDS
@JSON
@click.pass_context
def complete(ctx: click.Context, batch_ids: Sequence[str], as_json: bool) -> int:
    """End batches by force: members that have not ended have failed."""
    return _each(batch_ids, _remedies(ctx).complete, as_json, "completed")


@batches.command(cls=Command)
@IDS
@JSON
@click.pass_context
def drop(ctx: click.Context, batch_ids: Sequence[str], as_json: bool) -> int:
    """Forget batches. Their members run on, and no callback is sent."""
    return _each(batch_ids, _remedies(ctx).drop, as_json, "dropped")


def _each(
    ids: Sequence[str], do: Callable[[str], str | None], as_json: bool, said: str = ""
) -> int:
    def done() -> Iterator[Done]:
        for batch_id in ids:
            try:
                yield Done(batch_id, True, do(batch_id) or said)
            except (UnknownBatch, CallbackRuns) as exc:
                yield Done(batch_id, False, str(exc))

    return say_done(done(), as_json)


def _remedies(ctx: click.Context) -> Remedies:
    app = app_of(ctx)
    store = find_store(app)
    if store is None:
        raise CannotReach(
            "there is no Redis to keep batches in: neither the broker nor the result backend is "
            "one, and graceful_store is not set"
        )

    def publish(due: Sequence[Due]) -> None:
        for one in due:
            try:
                publish_due(app, store, one)
            except StoreAway:
                raise
            except Exception as exc:
                raise click.ClickException(f"{one.name} is sent by a worker: {exc!r}") from exc

    return Remedies(app, BatchLedger(store), publish)


def _noted(remedies: Remedies, batch_id: str) -> list[Missing]:
    return list(noted(remedies.ledger, batch_id))


def _document(status: Status, missing: Sequence[Missing]) -> dict[str, Any]:
    return {**status.summary(), "missing_members": [one._asdict() for one in missing]}


@contextmanager
def _unknown_is_an_error() -> Iterator[None]:
    try:
        yield
    except UnknownBatch as exc:
        raise click.ClickException(str(exc)) from exc


def _lines(status: Status, missing: Sequence[Missing]) -> Iterator[str]:
    yield _line(status)
    for name, state in status.callbacks.items():
        yield f"  {name}: {state}"
    for name in ("created", "moved", "finished"):
        at = getattr(status, name)
        if at is not None:
            yield f"  {name}: {moment(utc(at))}"
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
    return f"{moment(utc(status.moved))}  {status.id}  {state}: {', '.join(parts)}{said}"

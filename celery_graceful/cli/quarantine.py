"""``celery graceful quarantine``: look at tasks in quarantine, send them again, drop them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import click

from celery_graceful.cli.app import app_of, command_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    CannotReach,
    Command,
    folded,
    moment,
    say_done,
    say_json,
)
from celery_graceful.operations.records import Done, utc
from celery_graceful.poison.owning_app import is_told_here
from celery_graceful.poison.quarantine import Kept, delete, entries, find, send_again
from celery_graceful.store.app_stores import broker_places, find_workers_store
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system.describe import describe

__all__ = ["quarantine"]

_GONE = "is not in quarantine"

ALL = click.option("--all", "everything", is_flag=True, help="All that this app has in quarantine.")


@click.group()
def quarantine() -> None:
    """Messages that are not run again: why, and send them again.

    Their process died too often, nobody has known their task, or no task can be made of them.
    """


@quarantine.command("list", cls=Command)
@JSON
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """What is in quarantine, oldest first."""
    found = sorted(entries(_store(ctx)), key=lambda kept: kept.at)
    if as_json:
        say_json([_document(kept) for kept in found])
        return
    for kept in found:
        for line in folded(_line(kept, _is_ours(ctx, kept))):
            click.echo(line)
    if not found:
        click.echo("nothing is in quarantine", err=True)
    else:
        command = f"{command_of(ctx)}quarantine"
        click.echo(f"  -> {command} show ID; when it is mended: {command} retry ID", err=True)


@quarantine.command(cls=Command)
@click.argument("task_id")
@click.option("--json", "as_json", is_flag=True, help="It is a JSON document anyway.")
@click.pass_context
def show(ctx: click.Context, task_id: str, as_json: bool) -> int:
    """One task with its message. Exits with 1 if it is not there."""
    kept = find(_store(ctx), task_id)
    if kept is None:
        if as_json:
            say_json(None)
        click.echo(f"Error: {task_id} {_GONE}", err=True)
        return FOUND
    shown = {**_document(kept), "headers": None}
    try:
        message = kept.to_message()
        shown["headers"] = message.headers
        shown["body"] = message.decode()
    except Exception as exc:  # pickle is not read unasked, and it may be no message at all
        shown["body"] = f"not decoded: {exc!r}"
    click.echo(json.dumps(shown, indent=2, default=repr))
    return FINE


@quarantine.command(cls=Command)
@click.argument("task_ids", nargs=-1)
@ALL
@JSON
@click.pass_context
def retry(ctx: click.Context, task_ids: tuple[str, ...], everything: bool, as_json: bool) -> int:
    """Send tasks again, to the tail of their queues; their deaths are forgotten."""
    store = _store(ctx)

    def send(kept: Kept) -> Done:
        try:
            sent = send_again(app_of(ctx), store, kept)
        except StoreAway:
            raise
        except Exception as exc:  # brokers have errors of many kinds
            return Done(kept.id, False, f"could not be sent: {describe(exc)}")
        return Done(kept.id, sent, "sent again" if sent else _GONE)

    return _each(_chosen(ctx, store, task_ids, everything), send, as_json)


@quarantine.command("delete", cls=Command)
@click.argument("task_ids", nargs=-1)
@ALL
@JSON
@click.pass_context
def delete_(ctx: click.Context, task_ids: tuple[str, ...], everything: bool, as_json: bool) -> int:
    """Drop tasks and their messages, for good."""
    store = _store(ctx)

    def drop(kept: Kept) -> Done:
        deleted = delete(store, kept.id)
        return Done(kept.id, deleted, "deleted" if deleted else _GONE)

    return _each(_chosen(ctx, store, task_ids, everything), drop, as_json)


def _each(chosen: Iterator[Kept | Done], do: Callable[[Kept], Done], as_json: bool) -> int:
    return say_done((one if isinstance(one, Done) else do(one) for one in chosen), as_json)


def _store(ctx: click.Context) -> Store:
    app = app_of(ctx)
    store = find_workers_store(app)
    for place in broker_places(app)[1:]:  # where the worker is, if the first does not answer
        if store is not None and _answers(store):
            break
        store = find_workers_store(app, place)
    if store is None:
        raise CannotReach(
            "there is no Redis to keep a quarantine in: neither the broker nor the result "
            "backend is one, and graceful_store is not set"
        )
    return store


def _answers(store: Store) -> bool:
    try:
        return bool(store.execute("PING", []))
    except StoreAway:
        return False


def _is_ours(ctx: click.Context, kept: Kept) -> bool:
    """Not of another app that shares the database."""
    return is_told_here(app_of(ctx), kept.task, vars(kept))


def _chosen(
    ctx: click.Context, store: Store, task_ids: tuple[str, ...], everything: bool
) -> Iterator[Kept | Done]:
    """What was named, or why not."""
    if bool(task_ids) == everything:
        raise click.UsageError("name tasks, or give --all")
    for task_id in task_ids:
        yield find(store, task_id) or Done(task_id, False, _GONE)
    if everything:
        found = list(entries(store))
        ours = [kept for kept in found if _is_ours(ctx, kept)]
        if len(ours) < len(found):
            click.echo(f"{len(found) - len(ours)} of other apps are left alone", err=True)
        yield from ours


def _document(kept: Kept) -> dict[str, Any]:
    return {**asdict(kept), "at": utc(kept.at).isoformat()}


def _line(kept: Kept, is_ours: bool) -> str:
    whose = "" if is_ours else f"  (of another app: {kept.app or '?'})"
    return f"{moment(utc(kept.at))}  {kept.id}  {kept.task}  {kept.why}{whose}"

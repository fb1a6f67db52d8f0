"""``celery graceful quarantine``: look at tasks in quarantine, send them again, drop them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import asdict

import click

from celery_graceful.cli.app import app_of, command_of
from celery_graceful.cli.output import JSON_LINES, Command, folded
from celery_graceful.operations.records import Done
from celery_graceful.poison.owning_app import is_told_here
from celery_graceful.poison.quarantine import Kept, delete, entries, find, send_again
from celery_graceful.store.app_stores import broker_places, find_workers_store
from celery_graceful.store.store import Store, StoreAway

__all__ = ["quarantine"]

ALL = click.option("--all", "everything", is_flag=True, help="All that this app has in quarantine.")


@click.group()
def quarantine() -> None:
    """Messages that are not run again: why, and send them again.

    Their process died too often, nobody has known their task, or no task can be made of them.
    """


@quarantine.command("list", cls=Command)
@JSON_LINES
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """What is in quarantine, oldest first."""
    found = sorted(_read(_store(ctx)), key=lambda kept: kept.at)
    for kept in found:
        for line in [kept.to_json()] if as_json else folded(_line(kept, _is_ours(ctx, kept))):
            click.echo(line)
    if not found:
        click.echo("nothing is in quarantine", err=True)
    elif not as_json:
        command = f"{command_of(ctx)}quarantine"
        click.echo(f"  -> {command} show ID; when it is mended: {command} retry ID", err=True)


@quarantine.command(cls=Command)
@click.argument("task_id")
@click.pass_context
def show(ctx: click.Context, task_id: str) -> None:
    """One task with its message."""
    kept = _found(_store(ctx), task_id)
    shown = {**asdict(kept), "at": _time(kept.at)}
    try:
        message = kept.to_message()
        shown["headers"] = message.headers
        shown["body"] = message.decode()
    except Exception as exc:  # pickle is not read unasked, and it may be no message at all
        shown["body"] = f"not decoded: {exc!r}"
    click.echo(json.dumps(shown, indent=2, default=repr))


@quarantine.command(cls=Command)
@click.argument("task_ids", nargs=-1)
@ALL
@JSON_LINES
@click.pass_context
def retry(ctx: click.Context, task_ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Send tasks again, to the tail of their queues; their deaths are forgotten."""
    store = _store(ctx)
    for kept in _chosen(ctx, store, task_ids, everything):
        try:
            sent = send_again(app_of(ctx), store, kept)
        except Exception as exc:
            raise click.ClickException(f"{kept.id} could not be sent: {exc!r}") from exc
        _say(kept.id, sent, "sent again", as_json)


@quarantine.command("delete", cls=Command)
@click.argument("task_ids", nargs=-1)
@ALL
@JSON_LINES
@click.pass_context
def delete_(ctx: click.Context, task_ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Drop tasks and their messages, for good."""
    store = _store(ctx)
    for kept in _chosen(ctx, store, task_ids, everything):
        _say(kept.id, delete(store, kept.id), "deleted", as_json)


def _say(task_id: str, ok: bool, done: str, as_json: bool) -> None:
    said = Done(task_id, ok, done if ok else "is not in quarantine any more")
    click.echo(json.dumps(said.to_dict()) if as_json else f"{said.id} {said.said}")


def _store(ctx: click.Context) -> Store:
    app = app_of(ctx)
    store = find_workers_store(app)
    for place in broker_places(app)[1:]:  # where the worker is, if the first does not answer
        if store is not None and _answers(store):
            break
        store = find_workers_store(app, place)
    if store is None:
        raise click.ClickException(
            "there is no Redis to keep a quarantine in: neither the broker nor the result "
            "backend is one, and graceful_store is not set"
        )
    return store


def _answers(store: Store) -> bool:
    try:
        return bool(store.execute("PING", []))
    except StoreAway:
        return False


def _read(store: Store) -> list[Kept]:
    try:
        return list(entries(store))
    except StoreAway as exc:
        raise click.ClickException(str(exc)) from exc


def _found(store: Store, task_id: str) -> Kept:
    try:
        kept = find(store, task_id)
    except StoreAway as exc:
        raise click.ClickException(str(exc)) from exc
    if kept is None:
        raise click.ClickException(f"{task_id} is not in quarantine")
    return kept


def _is_ours(ctx: click.Context, kept: Kept) -> bool:
    """Not of another app that shares the database."""
    return is_told_here(app_of(ctx), kept.task, vars(kept))


def _chosen(
    ctx: click.Context, store: Store, task_ids: tuple[str, ...], everything: bool
) -> Iterable[Kept]:
    if bool(task_ids) == everything:
        raise click.UsageError("name tasks, or give --all")
    if not everything:
        return [_found(store, task_id) for task_id in task_ids]
    found = _read(store)
    ours = [kept for kept in found if _is_ours(ctx, kept)]
    if len(ours) < len(found):
        click.echo(f"{len(found) - len(ours)} of other apps are left alone", err=True)
    return ours


def _line(kept: Kept, is_ours: bool) -> str:
    whose = "" if is_ours else f"  (of another app: {kept.app or '?'})"
    return f"{_time(kept.at)}  {kept.id}  {kept.task}  {kept.why}{whose}"


def _time(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.timezone.utc).isoformat(" ", "seconds")

"""``celery graceful batches``: look at batches, and mend those that do not end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from celery_graceful.batches.model import CALLBACKS, State
from celery_graceful.cli.app import command_of, operations_of
from celery_graceful.cli.output import (
    FINE,
    FOUND,
    JSON,
    YES,
    Command,
    ask,
    counted,
    duration,
    folded,
    moment,
    say_done,
    say_json,
    shown,
)
from celery_graceful.cli.progress import Working
from celery_graceful.cli.writing import Group
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.operations.batch_records import Resent, Standing, Unknown
from celery_graceful.operations.batches import Batches, NotSent
from celery_graceful.operations.pasting import pasted
from celery_graceful.operations.records import utc

__all__ = ["batches", "lines_of"]

#: Missing members that are shown on a terminal.
MOST = 20

# Or their keys: the id of each is looked up once, before anything is asked.
ID = click.argument("batch_id", metavar="ID|KEY")
IDS = click.argument("batch_ids", nargs=-1, required=True, metavar="ID|KEY...")


@click.group(cls=Group)
def batches() -> None:
    """Batches, what they wait for, and four remedies for one that does not end.

    Send again what is missing, run the callback now, complete it by force, or drop it.
    """


@batches.command("list", cls=Command)
@JSON
@click.option("--missing", "only_missing", is_flag=True, help="Only those that miss members.")
@click.option("--left", "only_left", is_flag=True, help="Only those that were sent in part.")
@click.option("--failed", is_flag=True, help="Those with failed members, ended or not.")
@click.pass_context
def list_(
    ctx: click.Context, as_json: bool, only_missing: bool, only_left: bool, failed: bool
) -> int:
    """Batches that have not ended, that which has not moved for longest first.

    With --failed also those that have ended, as long as they are kept (graceful_batch_linger).
    Exits with 1 if one of them misses members, or its producer has left it (died, failed) before
    all of it was sent, or it has failed members that were asked for.
    """
    batches = _batches(ctx)
    with Working("looks for batches"):
        known = batches.with_failures() if failed else batches.unfinished()
    found = [
        one
        for one in known
        if (only_missing and one.status.missing)
        or (only_left and one.left)
        or not (only_missing or only_left)
    ]
    wanted = found if failed else [one for one in found if one.status.missing or one.left]
    status = FOUND if wanted else FINE
    if as_json:
        say_json([one.to_dict() for one in found])
        return status
    for one in found:
        for line in folded(_line(one)):
            click.echo(line)
    if not found:
        none = "nothing has failed" if failed else "no batch is unfinished"
        none = "no producer has left one" if only_left else none
        click.echo("nothing is known to be missing" if only_missing else none, err=True)
    elif status == FOUND:
        click.echo(f"  -> {command_of(ctx)}batches show ID", err=True)
    return status


@batches.command(cls=Command)
@ID
@JSON
@click.option(
    "--look",
    is_flag=True,
    help="Look for missing members now, and where others are: it takes some seconds.",
)
@click.pass_context
def show(ctx: click.Context, batch_id: str, as_json: bool, look: bool) -> int:
    """One batch: how it stands, and which members are missing, or have failed.

    Exits with 1 if some are missing, or with --look may be for all that can be known, if its
    producer has left it (died, failed) before all of it was sent, or there is no such batch.
    """
    batches = _batches(ctx)
    with _errors(), Working("looks for its members"):
        found = batches.batch(batches.find(batch_id), look=look)
    inside = [other for other in found.others if other.state == "batch"]
    is_stuck = found.missing or found.left or any(batch.stuck for batch in inside)
    status = FOUND if is_stuck or found.unknown else FINE
    if as_json:
        say_json(found.to_dict())
        return status
    for line in lines_of(found):
        click.echo("\n".join(folded(line)))
    batch = shown(found.status.id)
    if found.status.state is State.SENDING:
        dead = "" if found.left else "if its producer is dead: "
        key = shown(found.status.key)
        again = f"run it again with the key {key!r}" if key else "Batch.load(id).resume(members)"
        if found.status.kind == "chord":
            again = "send another one like it"
        command = f"{command_of(ctx)}{pasted(['batches', 'resend', '--close'], batch)}"
        click.echo(f"  -> {dead}{again}, or, if it has all of its members: {command}", err=True)
    elif is_stuck:
        click.echo(f"  -> {command_of(ctx)}{pasted(['batches', 'resend'], batch)}", err=True)
    elif found.unknown:
        click.echo(f"  -> {_mend(found.unknown, 'batches resend ')}", err=True)
    elif found.status.finished is None and not look:
        look_again = pasted(["batches", "show", "--look"], batch)
        click.echo(f"  -> {command_of(ctx)}{look_again}", err=True)
    elif inside:
        click.echo(f"  -> {command_of(ctx)}{inside[0].mend}", err=True)
    return status


@batches.command(cls=Command)
@IDS
@JSON
@click.option("--member", "members", multiple=True, help="This one, wherever it is.")
@click.option("--failed", is_flag=True, help="Those that have failed, and nothing else.")
@click.option("--unsure", is_flag=True, help="Also those that may be in a queue all the same.")
@click.option("--close", is_flag=True, help="Its producer is dead, and it has all its members.")
@click.pass_context
def resend(
    ctx: click.Context,
    batch_ids: Sequence[str],
    as_json: bool,
    members: Sequence[str],
    failed: bool,
    unsure: bool,
    close: bool,
) -> int:
    """Send missing members again, under their old ids.

    They are looked for first, which takes some seconds. What has ended in a worker without
    celery_graceful ends as its result says. Exits with 1 if some were left alone, or given up, or
    if it cannot be known whether some are missing: RabbitMQ does not say what is in a queue.
    """
    said: list[Resent] = []
    for batch_id in _ids(ctx, batch_ids):
        with Working("looks for its members"):
            try:
                done = _batches(ctx).resend(
                    batch_id, members, failed=failed, unsure=unsure, close=close
                )
            except (UnknownBatch, NotSent) as exc:
                done = Resent.refused(batch_id, str(exc))
        said.append(done)
        for one in () if as_json else (done, *done.inside):
            for line in _resent(one, failed=failed, alone=not done.inside):
                click.echo(line, err=not one.ok)
    if as_json:
        say_json([one.to_dict() for one in said])
    return FINE if all(one.is_well for one in said) else FOUND


@batches.command(cls=Command)
@ID
@click.argument("name", type=click.Choice(CALLBACKS))
@JSON
@click.option("--force", is_flag=True, help="Also if it runs: it runs twice then.")
@click.pass_context
def callback(ctx: click.Context, batch_id: str, name: str, as_json: bool, force: bool) -> int:
    """Run a callback now, whatever the batch waits for.

    Not while a worker runs it: its work would be done twice.
    """
    with _errors():
        found = _batches(ctx).find(batch_id)
        return say_done([_batches(ctx).callback(found, name, force=force)], as_json, error=": ")


@batches.command(cls=Command)
@IDS
@YES
@JSON
@click.pass_context
def complete(ctx: click.Context, batch_ids: Sequence[str], yes: bool, as_json: bool) -> int:
    """End batches by force: members that have not ended have failed."""
    batch_ids = _ids(ctx, batch_ids)
    _ask(ctx, batch_ids, "End {batches} by force, {members} of which have failed then?", yes)
    with _errors():
        return say_done(map(_batches(ctx).complete, batch_ids), as_json, error=": ")


@batches.command(cls=Command)
@IDS
@YES
@JSON
@click.pass_context
def drop(ctx: click.Context, batch_ids: Sequence[str], yes: bool, as_json: bool) -> int:
    """Forget batches. Their members run on, and no callback is sent."""
    batch_ids = _ids(ctx, batch_ids)
    _ask(ctx, batch_ids, "Forget {batches} with {members} pending, and send no callback?", yes)
    with _errors():
        return say_done(map(_batches(ctx).drop, batch_ids), as_json, error=": ")


def _ask(ctx: click.Context, batch_ids: Sequence[str], question: str, yes: bool) -> None:
    """Ask, if any of them is there."""
    found = []
    for batch_id in batch_ids:
        with suppress(UnknownBatch):
            found.append(_batches(ctx).batch(batch_id).status)
    if found:
        batches = counted(len(found), "batch", "batches")
        members = counted(sum(status.pending for status in found), "member")
        ask(question.format(batches=batches, members=members), yes)


def _ids(ctx: click.Context, named: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(map(_batches(ctx).find, named)))


def _batches(ctx: click.Context) -> Batches:
    return operations_of(ctx).batches


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (UnknownBatch, NotSent) as exc:
        raise click.ClickException(shown(str(exc))) from exc


def _resent(done: Resent, *, failed: bool, alone: bool = True) -> Iterator[str]:
    done = shown(done)
    yield f"{done.id} {done.said}" if done.ok else f"{done.id}: {done.said}"
    for member, why in done.left.items():
        yield f"  {member} left alone: {why}"
    if alone and done.ok and done.found_nothing and not (done.sending or done.closed):
        yield (
            "  none of its members has failed"
            if failed
            else "  none of its members is missing; batches show ID --look says where they are, "
            "resend ID --failed sends those again that have failed"
        )
    if done.unknown:
        yield f"  {done.unknown.why}"
        yield f"  {_mend(done.unknown)}"
    if done.sending:
        yield "  it is being sent; if its producer is dead: Batch.resume(), or --close"


def _mend(unknown: Unknown, command: str = "") -> str:
    one = f"{command}--member M sends one wherever it is"
    all_ = f"--unsure all of them once the batch has stood still for {duration(unknown.age)}"
    return "; ".join(filter(None, (unknown.mend, f"{one}, {all_}")))


def lines_of(found: Standing) -> Iterator[str]:
    """What is printed of one of them."""
    found = shown(found)
    status = found.status
    yield _line(found)
    for name, state in status.callbacks.items():
        yield f"  {name}: {state}"
    for name in ("created", "moved", "finished"):
        at = getattr(status, name)
        if at is not None:
            yield f"  {name}: {moment(utc(at))}"
    if found.left or (status.state is State.SENDING and status.heard and not status.parent):
        yield f"  producer: {_producer(found)}"
    if status.properties:
        yield f"  properties: {status.properties}"
    for one in found.missing[:MOST]:
        task = f"  {one.task}" if one.task else ""
        yield f"  missing: {one.member}{task}  {one.why}{'' if one.sure else ' (unsure)'}"
    if found.unknown:
        yield f"  unknown: {found.unknown.said}: {found.unknown.why}"
    if len(found.missing) > MOST:
        yield f"  and {len(found.missing) - MOST:,} more that are missing: --json names them"
    for failed in found.failed:
        what = failed.task or ("a batch" if failed.batch else "")
        yield "  ".join(filter(None, (f"  failed: {failed.member}", what, failed.description)))
    if found.failed and status.failed > len(found.failed):
        yield f"  and {status.failed - len(found.failed):,} more that have failed"
    for other in found.others:
        yield f"  pending: {other.id}  {other.sentences[0]}"
    more = status.pending - sum(not one.is_callback for one in found.missing) - len(found.others)
    if found.others and more > 0:
        yield f"  and {more:,} more that are pending"


def _producer(found: Standing) -> str:
    heard = found.status.heard
    if heard is None:
        return "has failed, or was stopped: nobody sends the rest"
    at = moment(utc(heard))
    return f"not heard of since {at}: nobody sends the rest" if found.left else f"heard of at {at}"


def _line(found: Standing) -> str:
    status = shown(found.status)
    parts: list[Any] = [
        f"{status.pending} of {status.total} pending",
        f"{status.succeeded} succeeded",
        f"{status.failed} failed",
        f"{status.revoked} revoked",
        f"{status.missing} missing",
    ]
    inside = f"  (inside of {status.parent})" if status.parent else ""
    kind = "" if status.kind == "batch" else f" {status.kind}"
    named = ", ".join(filter(None, (status.key, status.description)))
    said = f"  {named}" if named else ""
    state = f"{status.state.value}{kind}"
    parts += ["left by its producer"] * found.left
    return f"{moment(utc(status.moved))}  {status.id}  {state}: {', '.join(parts)}{said}{inside}"

"""What commands print that is no table, at 80 columns; and their JSON, as the docs have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import click
import pytest

from celery_graceful.batches.model import State
from celery_graceful.batches.status import Status
from celery_graceful.cli import batches, history, output, quarantine, workers
from celery_graceful.cli.group import graceful
from celery_graceful.operations.batch_records import (
    FailedMember,
    MissingMember,
    Resent,
    Standing,
    Unknown,
)
from celery_graceful.operations.quarantine import QuarantinedTask
from celery_graceful.operations.records import Answer, Deploy, History, Moment
from tests.support.operators import SCHEMAS
from tests.support.schema import conforms
from tests.unit.cli.test_tables import AT, IDS, ago, printed


def folded(*lines: str) -> str:
    return printed(chain.from_iterable(output.folded(line, 80) for line in lines))


def test_history() -> None:
    released = Moment(ago(seconds=9), "released", "", "", "w1@a", "shutdown", "", 3)
    moments = (
        Moment(ago(hours=1), "rescued", IDS[1], "shop.mail", "w3@c", "given back by w1@a", "", 1),
        Moment(ago(minutes=1), "deploy", "", "", "", "shop 4.2", "", 1),
        Moment(ago(seconds=9), "interrupted", IDS[0], "shop.export", "w1@a", "shutdown", "row", 1),
        released,
        Moment(AT, "quarantined", IDS[0], "shop.export", "", "its process died " * 5, "", 1),
    )
    deploy = Deploy(ago(minutes=1), "shop 4.2", {"interrupted": 1, "released": 3})
    found = History("", moments, (deploy,))
    conforms(found.to_dict(), SCHEMAS["History"], SCHEMAS)
    assert (
        printed(history.lines_of(found, 80, 3))
        == """\
1 earlier one is left out
2025-03-01 02:59:00Z  deploy  shop 4.2
  1 interrupted, 3 released
2025-03-01 02:59:51Z  interrupted
  shop.export 0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10
  on w1@a, shutdown, row
2025-03-01 02:59:51Z  released  3 tasks
  on w1@a, shutdown
2025-03-01 03:00:00Z  quarantined
  shop.export 0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10
  its process died its process died its process died its process died its
    process died"""
    )


def test_quarantine() -> None:
    why = "its process died 3 times in 72 h"
    kept = QuarantinedTask(IDS[0], "shop.export", why, 3, AT, "w", {}, "", "", False)
    conforms(kept.to_dict(), SCHEMAS["QuarantinedTask"], SCHEMAS)
    assert (
        folded(quarantine.line_of(kept))
        == """\
2025-03-01 03:00:00Z  0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10  shop.export  its
    process died 3 times in 72 h  (of another app: ?)"""
    )


def test_batches() -> None:
    at = AT.timestamp()
    status = Status(IDS[0], State.OPEN, 9, 4, 3, 1, 1, 1, 0, at, at, None, "export of March")
    why = "it is in no queue, and no worker holds it"
    missing = [MissingMember(IDS[1], why, False, "shop.export")]
    found = Standing(status, tuple(missing), failed=(FailedMember(IDS[0], "shop.export"),))
    conforms(found.to_dict(), SCHEMAS["Batch"], SCHEMAS)
    assert (
        folded(*batches.lines_of(found))
        == """\
2025-03-01 03:00:00Z  0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10  open: 4 of 9
    pending, 3 succeeded, 1 failed, 1 revoked, 1 missing  export of March
  created: 2025-03-01 03:00:00Z
  moved: 2025-03-01 03:00:00Z
  missing: 1f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b11  shop.export  it is in no queue,
      and no worker holds it (unsure)
  failed: 0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10  shop.export"""
    )
    many = Standing(status, tuple(missing) * 1_234)
    lines = [line for line in batches.lines_of(many) if "missing" in line]
    assert len(lines) == 1 + 20 + 1  # and its own line
    assert lines[-1] == "  and 1,214 more that are missing: --json names them"
    assert output.folded("x " * 99) == ["x " * 99], "who reads a pipe gets a line each"


@pytest.mark.parametrize(
    ("done", "more"),
    [
        (
            {},
            "  none of its members is missing; batches show ID --look says where they are, "
            "resend ID --failed sends those again that have failed",
        ),
        ({"left": {"one": "why"}}, "  one left alone: why"),
        (
            {"unknown": Unknown(2, "others cannot be looked into", "", 300.0)},
            "  others cannot be looked into\n"
            "  --member M sends one wherever it is, --unsure all of them once the "
            "batch has stood still for 5 min",
        ),
        ({"closed": True}, ""),
        (
            {"sending": True},
            "  it is being sent; if its producer is dead: Batch.resume(), or --close",
        ),
        ({"resent": ("one",)}, ""),
    ],
)
def test_what_was_sent_again(done: dict[str, Any], more: str) -> None:
    """What is said besides follows from what was done, not from how that is said."""
    none: dict[str, Any] = dict.fromkeys(("ended", "resent", "failed", "called"), ())
    none |= {"left": {}, "sending": False, "closed": False}
    resent = Resent(id="b", said="in whatever words", **{**none, **done})
    conforms(resent.to_dict(), SCHEMAS["Resent"], SCHEMAS)
    lines = [*batches._resent(resent, failed=False)]
    assert lines == ["b in whatever words", *more.splitlines()]


def test_answers(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [Answer("w1@a", True, "quiet"), Answer("w2@b", False, "has not answered in time")]
    assert workers._told(lambda: answers, [], False) == output.FOUND
    assert workers._told(lambda: answers[:1], [], True) == output.FINE
    shown, _, document = capsys.readouterr().out.partition("[")
    assert shown == "w1@a  quiet\nw2@b  has not answered in time\n"
    conforms(json.loads("[" + document)[0], SCHEMAS["Answer"], SCHEMAS)


def all_of(group: click.Group) -> Iterator[click.Command]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        each = group.get_command(ctx, name)
        assert each is not None
        assert each.name == name
        yield from all_of(each) if isinstance(each, click.Group) else [each]


def test_each_command_ends_quietly() -> None:
    """By Ctrl-C, or where nobody reads what it prints: as `Command` does."""
    found = list(all_of(graceful))
    assert len(found) > 20
    assert [each.name for each in found if not isinstance(each, output.Command)] == []


def test_each_command_has_json() -> None:
    """What there is to say is a document, too."""
    for each in all_of(graceful):
        assert any("--json" in param.opts for param in each.params), each.name


def test_commands_are_listed_as_they_say_of_themselves() -> None:
    ctx = click.Context(graceful)
    listed = graceful.get_help(ctx).partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(graceful.list_commands(ctx)), "a line each"
    for name, line in zip(graceful.list_commands(ctx), listed, strict=True):
        each = graceful.get_command(ctx, name)
        assert each is not None
        assert each.get_short_help_str(999).startswith(line.split(name, 1)[1].strip().rstrip("."))
    assert graceful.get_command(ctx, "nothing") is None

"""What commands print of records, at 80 columns."""

from __future__ import annotations

import datetime as dt
import shlex
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import click
import pytest

from celery_graceful.cli import chaos, checkpoints, claims, status, why
from celery_graceful.operations.findings import Unknown, findings_of
from celery_graceful.operations.history import Late
from celery_graceful.operations.records import (
    Checkpoint,
    Claim,
    DeadWorker,
    Kill,
    KilledTask,
    Loop,
    RunningTask,
    Status,
    Why,
    Worker,
)
from celery_graceful.operations.waiting import Waiting, say_waiting

AT = dt.datetime(2025, 3, 1, 3, 0, tzinfo=dt.timezone.utc)
IDS = [f"{number}f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b1{number}" for number in range(5)]
EXPORT = Checkpoint(IDS[0], "shop.export", 2, (Loop("rows", 300, False),), ("copy",), None, 90, 60)


def ago(**time: float) -> dt.datetime:
    return AT - dt.timedelta(**time)


def worker(name: str, **more: Any) -> Worker:
    said: dict[str, Any] = {
        "id": f"{name}:0123456789abcdef",
        "name": name,
        "host": name.partition("@")[2],
        "pid": 7,
        "app": "shop",
        "phase": "running",
        "phase_since": ago(hours=2, minutes=5),
        "since": ago(hours=2, minutes=5),
        "seconds_left": None,
        "heard": 0.5,
        "heartbeat": 2.0,
        "pool": "prefork",
        "concurrency": 4,
        "loop_lag": 0.0,
        "claims": 3,
    }
    return Worker(**{**said, **more})


def printed(lines: Any) -> str:
    lines = [click.unstyle(line) for line in lines]
    assert all(len(line) <= 80 for line in lines)
    return "\n".join(lines)


def test_status() -> None:
    workers = (
        worker(
            "w1@shop-worker-7d9f8b6c5-x2x4z.production.svc.cluster.local",
            running=(
                RunningTask(IDS[0], "shop.export", 12.0, EXPORT),
                RunningTask(IDS[1], "shop.reports.tasks.send_monthly_invoices", 3.4),
            ),
            running_count=3,
        ),
        worker("w2@b", phase="soft", phase_since=ago(seconds=20), seconds_left=4.2, heard=6.0),
        worker("w3@c", phase="quiet", claims=None, loop_lag=7.5, unknown_tasks=1),
    )
    dead = (DeadWorker("w4@d:1", "w4@d", 12, False), DeadWorker("w5@e:1", "w5@e", 0, True))
    waiting = Waiting(Counter({"shop.new": 1}), Counter({"shop.a": 8}))
    found = findings_of(workers, dead, 1, ["b1", "b2"], waiting=waiting)
    shown = Status(AT, workers, dead, 1, ("b1", "b2"), tuple(found))
    assert (
        printed(status.lines_of(shown, 80, "celery -A shop graceful "))
        == """\
2025-03-01 03:00:00Z  3 workers, 3 running
WORKER                            PHASE    SINCE       LEFT  RUNS  CLAIMS    LAG
w1@shop-worker-7d9f8b6c5-x2x4...  running  2 h 5 min      -   3/4       3  0.0 s
  shop.export                        0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10   12 s
    at 300 of rows, interrupted 2 times
  shop.reports.tasks.send_monthl...  1f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b11  3.4 s
  and 1 more
w2@b                              soft     20 s       4.2 s   0/4       3  0.0 s
w3@c                              quiet    2 h 5 min      -   0/4       -  7.5 s

w2@b was not heard for 6 s
  -> look at process 7 on b: it is frozen, cut off, or dead

the loop of w3@c has not gone round for 8 s
  -> look at process 7 on c: something holds it

w3@c is quiet: it fetches nothing
  -> celery -A shop graceful resume w3@c

w4@d is dead and holds 12 messages
  -> celery -A shop graceful rescue

8 messages wait for a worker that knows shop.a, and no worker looks after them
  -> celery -A shop graceful rescue

1 message waits for a worker that knows shop.new
  -> deploy a worker that knows their tasks

1 task in quarantine
  -> celery -A shop graceful quarantine list

2 batches with missing members
  -> celery -A shop graceful batches list --missing"""
    )


def test_what_waits_and_where_all_know_it() -> None:
    assert say_waiting({"d": 1, "c": 1, "b": 1, "a": 1}).endswith(" knows a, b, c and 1 more")
    assert say_waiting({"a": 1}, is_seen=False).endswith("a, and no worker looks after it")
    on_its_way = Waiting(Counter(a=1), Counter())
    assert [*findings_of((worker("w1@a"),), (), 0, (), waiting=on_its_way)] == []
    nobody_knows = Waiting(Counter(), Counter(a=1))
    (full,) = findings_of((), (), 0, (), waiting=nobody_knows, no_writes=["it is full"])
    assert full.mend == "doctor", "nobody could say that it lives"


def test_nobody_works() -> None:
    found = tuple(findings_of((), (), 0, ()))
    shown = Status(AT, (), (), 0, (), found)
    assert (
        printed(status.lines_of(shown, 80, "celery -A shop graceful "))
        == """\
2025-03-01 03:00:00Z  0 workers, 0 running

no worker is running
  -> start one"""
    )


def test_others_work_without_the_package() -> None:
    def said(unknown: Unknown, **more: Any) -> str:
        (found,) = findings_of((), (), 0, (), unknown=unknown, **more)
        return found.what

    assert said(Unknown(["a@h", "b@h"]), unconsumed={"mail": 2}) == (
        "no worker runs with celery_graceful, but without it: a@h, b@h, and 2 messages waiting"
    )
    assert said(Unknown([f"{n}@h" for n in "abcde"])).endswith(": a@h, b@h, c@h and 2 more")
    assert said(Unknown(["a@h"], ["b@h"])) == "no worker has a lease, but b@h answers"
    assert said(Unknown([], ["b@h", "c@h"])) == "no worker has a lease, but b@h, c@h answer"
    assert said(Unknown(away="refused")).endswith("the broker does not answer: refused")


def test_rabbitmq_is_away_and_workers_live() -> None:
    """Their loops stand still, since they try to reconnect: that is no finding of its own."""
    waits = worker("w1@a", loop_lag=20.0)
    (found,) = findings_of((waits,), (), 0, (), rabbit_away="amqp://mq: timed out")
    assert found.what == "the broker does not answer: amqp://mq: timed out"
    assert found.mend == "look at it: workers run what they hold, and get nothing more"


def test_workers_reconnect_after_a_start_of_redis() -> None:
    waits = worker("w1@a", loop_lag=13.0)
    assert [*findings_of((waits,), (), 0, (), broker_up=8.0)] == []
    (found,) = findings_of((waits,), (), 0, (), broker_up=90.0)
    assert found.what == "the loop of w1@a has not gone round for 13 s"


def test_a_task_may_keep_the_loop_of_solo() -> None:
    busy = worker("w1@a", loop_lag=60.0, running_count=1, tasks_keep_loop=True)
    assert [*findings_of((busy,), (), 0, ())] == []
    idle = worker("w1@a", loop_lag=60.0, tasks_keep_loop=True)
    assert [*findings_of((idle,), (), 0, ())]


def test_what_takes_no_writes_is_not_told_of_workers() -> None:
    dead = (DeadWorker("w4@d:1", "w4@d", 12, False),)
    found = findings_of((worker("w2@b", heard=6.0),), dead, 0, (), no_writes=["it is full"])
    assert [one.what for one in found] == ["Redis takes no writes: it is full"]


def test_what_is_wrong_is_folded_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(findings_of((), (), 0, (), no_writes=["the broker: " + "it is full " * 9]))
    shown = Status(AT, (), (), 0, (), found)
    in_a_pipe = list(status.lines_of(shown, 80, "celery -A shop graceful "))
    assert max(map(len, in_a_pipe)) > 80
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    said = [click.unstyle(one) for one in status.lines_of(shown, 80, "celery -A shop graceful ")]
    assert max(map(len, said)) <= 80
    assert said[-1] == in_a_pipe[-1] == "  -> celery -A shop graceful doctor"


def test_a_replica_is_read() -> None:
    dead = (DeadWorker("w4@d:1", "w4@d", 12, False),)
    found = findings_of((worker("w2@b", heard=6.0),), dead, 0, (), replicas=["redis-2:6379"])
    assert [one.what for one in found] == [
        "redis-2:6379 is a replica: this may be a moment old",
        "w2@b was not heard for 6 s",
        "w4@d is dead and holds 12 messages",
    ]


def test_what_waits_for_a_worker() -> None:
    found = findings_of((), (), 0, (), unconsumed={"mail": 2, "web": 1})
    assert [one.what for one in found] == ["no worker is running, and 3 messages waiting"]
    more = {"unconsumed": {"mail": 2}, "without_claims": 3, "late": Late(3, 41.7)}
    said = [one.what for one in findings_of((worker("w1@a"),), (), 0, (), **more)]
    assert said == [
        "3 messages at workers without claims (plain Celery), none of which answers",
        "3 processes died in their tasks within 10 min, the last 42 s ago",
        "2 messages in the queue mail, which none of these consumes",
    ]
    assert [*findings_of((worker("w1@a"),), (), 0, (), late=Late(2))] == []
    named = {"without_claims": 1, "unknown": Unknown(["p1@a", "p2@a"], ["w1@a"])}
    (found,) = findings_of((worker("w1@a"),), (), 0, (), **named)
    assert found.what == "1 message at workers without claims (plain Celery): p1@a, p2@a"


def test_workers_that_were_killed_before_they_had_stopped() -> None:
    late = Late(cut_off=["w1@a", "w2@a", "w3@a", "w4@a"])
    (found,) = findings_of((worker("w5@a"),), (), 0, (), late=late)
    said = "w1@a, w2@a, w3@a and 1 more stopped, and did not get to give back what was held there"
    assert (found.what, found.mend) == (said, "history")


def test_a_task_that_starts_over_each_time() -> None:
    saved = Checkpoint(IDS[0], "shop.report", 2)
    busy = worker("w1@a", running=(RunningTask(IDS[0], "shop.report", 5.0, saved),))
    *_, said = status.lines_of(Status(AT, (busy,), (), 0, (), ()), 80, "")
    assert said == "    interrupted 2 times, and has saved nothing"
    goes_on = replace(saved, own_cursor=True)
    busy = worker("w1@a", running=(RunningTask(IDS[0], "shop.report", 5.0, goes_on),))
    *_, said = status.lines_of(Status(AT, (busy,), (), 0, (), ()), 80, "")
    assert said == "    interrupted 2 times"


def test_claims() -> None:
    found = [
        Claim("w1@a:01", True, 1, IDS[0], "shop.export", "celery", True),
        Claim("w1@a:01", True, 2, IDS[1], "shop." + "long" * 9, "q" * 30, False, AT),
        Claim("w1@a:01", True, 3, IDS[2], "shop.later", "celery", False, AT + dt.timedelta(1)),
        Claim("w2@b:02", False, 1, "", "", "celery", False),
    ]
    assert (
        printed(claims.lines_of(found, AT, 80))
        == """\
w1@a:01  3 claims
  shop.ex...  0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10  celery                begun
  shop.lo...  1f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b11  qqqqqqqqqqqqqqqqq...  waits
  shop.later  2f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b12  celery                in 1 d
w2@b:02  1 claim  dead: they wait to be given back
  ?  ?  celery  waits"""
    )


def test_checkpoints() -> None:
    assert (
        printed(checkpoints.lines_of([EXPORT], 80))
        == """\
TASK         ID                                    INTERRUPTED  BYTES
shop.export  0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10            2     90
  at 300 of rows"""
    )


def test_why() -> None:
    said = (
        "w1@shop-worker-7d9f8b6c5-x2x4z.production holds it, and is dead: others give it back to q",
        "interrupted 2 times",
    )
    found = Why(IDS[0], "shop.export", "claimed", said, stuck=True, mend="rescue")
    assert (
        printed(why.lines_of(found, 80, "celery -A shop graceful "))
        == """\
0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10  claimed  shop.export
  w1@shop-worker-7d9f8b6c5-x2x4z.production holds it, and is dead: others give
    it back to q
  interrupted 2 times
  -> celery -A shop graceful rescue"""
    )


def test_where_it_stands() -> None:
    loops = (Loop("years", 2024, False), Loop("years@2024/rows", 17, False), Loop("old", 9, True))
    assert Checkpoint("a", "t", 0, loops).where == "at 17 of rows"
    assert Checkpoint("a", "t", 0, loops[2:], ("first", "second")).where == "after step second"
    assert Checkpoint("a", "t", 0).where == ""


def test_a_kill() -> None:
    found = (
        KilledTask(IDS[0], "shop.export", True, "running", "w2@b", 10.4, "at 300 of rows"),
        KilledTask(IDS[1], "shop.mail", True, "back", "", 10.2),
        KilledTask(IDS[2], "shop.mail", True, "quarantined", "", 10.4, "in quarantine since now"),
        KilledTask(IDS[3], "shop.beat", True, "lost", "", 0.2, "it was acknowledged before it ran"),
        *[KilledTask(IDS[4], "shop.mail", False, "back", "", 10.2)] * 3,
        KilledTask("x", "shop.mail", False),
        KilledTask("y", "shop.mail", True),
    )
    assert (
        printed(chaos.lines_of(found, 80))
        == """\
shop.export  0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10
  runs again on w2@b, at 300 of rows, after 10 s
shop.mail  1f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b11
  back in its queue, after 10 s
shop.mail  2f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b12
  in quarantine since now, after 10 s
shop.beat  3f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b13
  lost: it was acknowledged before it ran, after 0.2 s
shop.mail  y
  still claimed by who was killed: nobody has given it back
3 messages that had not begun went back, after 10 s"""
    )
    assert (
        printed(chaos.summary_of(Kill("w1@a:1", "w1@a", AT, 60.0, found), 80))
        == """\
shop.mail  y
  still claimed by who was killed: nobody has given it back
w1@a was killed at 2025-03-01 03:00:00Z
1 message that had not begun did not go back
1 of 5 tasks ran again within 60 s"""
    )
    well = Kill("w1@a:1", "w1@a", AT, 10.6, (*found[:1], *found[4:6]))
    assert printed(chaos.summary_of(well, 80)).endswith("its task ran again after 10 s")
    none = Kill("w1@a:1", "w1@a", AT, 10.6, found[4:6])
    assert printed(chaos.summary_of(none, 80)).endswith("it ran nothing")


def test_who_is_missed() -> None:
    one, two = (worker(name, queues=("celery", "mails")) for name in ("w1@a", "w2@b"))
    assert not list(chaos.warnings_of(one, [two]))
    (said,) = chaos.warnings_of(one, [])
    assert "No other worker is running" in said
    quiet = worker("w3@c", queues=("celery", "mails"), phase="quiet")
    (said,) = chaos.warnings_of(one, [worker("w2@b", queues=("celery",)), quiet])
    assert "fetches from mails: what" in said


def test_a_command_that_mends_is_quoted_for_a_shell() -> None:
    (found,) = findings_of((worker("a b@ho$st", phase="quiet"),), (), 0, ())
    assert shlex.split(found.mend) == ["resume", "a b@ho$st"]
    assert found.mend == "resume 'a b@ho$st'"

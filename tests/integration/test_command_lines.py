"""What commands print that say in a line what they have done, at 80 columns."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

import celery_graceful_probe
from celery_graceful import Batch, Graceful
from celery_graceful.batches.keys import key_of as batch_key
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import End, Outcome, State
from celery_graceful.checkpoints.checkpoint import key_of
from celery_graceful.cli.output import folded
from celery_graceful.cli.rescue import lines_of
from celery_graceful.operations.rescue import Rescued
from celery_graceful.poison.quarantine import Kept, put
from celery_graceful.store.app_stores import find_workers_store
from tests.conftest import RedisDB
from tests.support.broker import graceful_command
from tests.support.command import CELERY
from tests.support.operators import APP, command, command_or, document, make_app
from tests.support.workers import environment, wait_until

ID = "0f1c29c6-4a0b-4bd1-9e5c-d7f2e8a90b10"


@pytest.fixture
def app(redis_db: RedisDB) -> Celery:
    app = Celery("shop", broker=redis_db.url, set_as_current=False)
    Graceful(app)

    @app.task(name="shop.mail", shared=False)
    def mail() -> None: ...

    return app


@pytest.fixture
def run(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a command prints, which is no wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str, status: int = 0, answer: str = "") -> str:
        said = command(app, *args, status=status, answer=answer)
        assert answer or all(len(line) <= 80 for line in said.splitlines()), said
        return said

    return run


def test_checkpoints(run: Callable[..., str], redis_db: RedisDB) -> None:
    saved = {
        "interruptions": 2,
        "c:years": '["int", 2024, false]',
        "c:old": '["int", 9, true]',
        "s:copy": '[1, "done"]',
        "state": '{"sent": 3}',
    }
    redis_db.client.hset(key_of("shop.export", ID), mapping=saved)
    redis_db.client.pexpire(key_of("shop.export", ID), 86_400_000 + 300_000)
    assert (
        run("checkpoints", "show", ID)
        == f"""\
shop.export  {ID}  at 2024 of years
  interrupted: 2
  loop years: has done 2024
  loop old: has ended
  step copy: done
  state: {{'sent': 3}}
  95 bytes, forgotten in 1 d
"""
    )
    assert run("checkpoints", "clear", ID, "--yes") == f"{ID} cleared\n"
    assert run("checkpoints", "clear", ID, status=1) == f"nothing is saved of {ID}\n"


def test_a_deploy(run: Callable[..., str]) -> None:
    said = run("deploy", "mark", "shop 4.2")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ  deploy  shop 4\.2\n", said)


def test_quarantine(app: Celery, run: Callable[..., str]) -> None:
    store = find_workers_store(app)
    assert store is not None
    message = {"headers": {"id": ID, "task": "shop.mail"}, "properties": {}, "body": ""}
    for task_id in (ID, "2"):
        kept = {"list": "celery", "raw": json.dumps(message)}
        put(store, Kept(task_id, "shop.mail", "why", 3, 1.0, "w1@a:01", kept))
    assert run("quarantine", "retry", ID, "3", status=1).splitlines() == [
        f"{ID} sent again",
        "3 is not in quarantine",
    ]
    assert run("quarantine", "delete", "--all", "--yes") == "2 deleted\n"
    assert run("quarantine", "show", "2", status=1) == "Error: 2 is not in quarantine\n"


def test_the_mend_of_an_id_that_a_shell_would_run(app: Celery) -> None:
    store = find_workers_store(app)
    assert store is not None
    task_id = "x; touch F #"
    put(store, Kept(task_id, "shop.mail", "why", 3, 1.0, "w1@a:01", {"raw": "{}"}))
    said = command(app, "why", task_id, status=1)
    mend = said.rpartition("-> ")[2].strip()
    assert shlex.split(mend)[-3:] == ["quarantine", "show", task_id]


def test_batches(app: Celery, run: Callable[..., str]) -> None:
    mail = app.tasks["shop.mail"]
    first, second = (Batch(app=app, on_complete=mail.si()).apply_async([mail.s()]) for _ in "ab")
    assert run("batches", "resend", first.id, "--member", "nobody", status=1) == (
        f"{first.id} 1 left alone\n  nobody left alone: it is no member of this batch\n"
    )
    assert run("batches", "resend", first.id, "--member", "callback:on_success", status=1) == (
        f"{first.id} 1 left alone\n  callback:on_success left alone: it has no such callback\n"
    )
    said = run("batches", "callback", first.id, "on_success", status=1)
    assert said == f"{first.id}: there is no on_success; it has on_complete\n"
    assert run("batches", "callback", first.id, "on_complete") == f"{first.id} on_complete sent\n"
    assert run("batches", "complete", second.id, "--yes") == f"{second.id} completed\n"
    assert run("batches", "drop", first.id, "--yes") == f"{first.id} dropped\n"
    (left,) = document(app, "Batch", "batches", "list")
    assert (left["id"], left["state"]) == (second.id, "sent"), "its callback has not ended"


def test_batches_of_which_members_have_failed(app: Celery) -> None:
    """Those that have ended are listed, too, and nothing that only looks like one."""
    mail, store = app.tasks["shop.mail"], find_workers_store(app)
    assert store is not None
    assert command(app, "batches", "list", "--failed") == "nothing has failed\n"
    may, june = (
        Batch(app=app, description=month).apply_async(
            mail.si().set(task_id=f"{month} {n}") for n in (1, 2)
        )
        for month in ("May", "June")
    )
    Batch(app=app).apply_async([mail.si()])
    failed = [End(june.id, "June 1", Outcome.FAILED), End(june.id, "June 2", Outcome.SUCCEEDED)]
    BatchLedger(store).end([*failed, End(may.id, "May 2", Outcome.FAILED)])
    store.execute("SADD", ["graceful:batch:gone:failed"], ["one"])
    assert (june.status().state, may.status().state) == (State.DONE, State.SENT)
    said = " ".join(command(app, "batches", "list", "--failed", status=1).split())
    counts = "sent: 1 of 2 pending, 0 succeeded, 1 failed, 0 revoked, 0 missing May"
    assert f"{may.id} {counts}" in said
    assert f"{june.id} done: 0 of 2 pending, 1 succeeded, 1 failed" in said
    assert said.endswith("batches show ID")
    found = json.loads(command(app, "batches", "list", "--failed", "--json", status=1))
    assert {one["id"]: one["failed_members"][0]["member"] for one in found} == {
        june.id: "June 1",
        may.id: "May 2",
    }
    assert (
        command(app, "batches", "list", "--failed", "--missing")
        == "nothing is known to be missing\n"
    )
    said = command(app, "batches", "resend", "--failed", june.id, status=1)
    assert said.endswith("  June 1 left alone: it is in a queue, or a worker holds it\n")
    store.execute("DEL", ["celery"])
    assert command(app, "batches", "resend", "--failed", june.id) == f"{june.id} 1 sent again\n"


def test_several_of_which_one_is_unknown(app: Celery) -> None:
    """What was done for the others is done, and said."""
    batch = Batch(app=app).apply_async([app.tasks["shop.mail"].si().set(task_id="one")])
    argv = ["batches", "resend", "nope", batch.id, "--member", "one"]
    said = command(app, *argv, status=1).splitlines()
    assert said[0].startswith("nope: there is no batch 'nope'")
    assert said[1:] == [f"{batch.id} 1 sent again"]
    found = json.loads(command(app, *argv, "--json", status=1))
    left = {"one": "sent again a moment ago"}
    assert [(one["ok"], one["left"]) for one in found] == [(False, {}), (True, left)]


@pytest.mark.parametrize("remedy", ["callback nope on_success", "complete nope", "drop nope"])
def test_a_wrong_id_is_set_off_from_what_is_said_of_it(app: Celery, remedy: str) -> None:
    said = command(app, "batches", *remedy.split(), *["--yes"] * (remedy[1] != "a"), status=1)
    assert said.startswith("nope: there is no batch 'nope'")


def test_a_batch_that_waits_for_one_inside(app: Celery) -> None:
    """It is named, and so is the way on; and what of it is missing, with its task."""
    mail = app.tasks["shop.mail"]
    kid = Batch(app=app, description="north")
    kid.add(mail.si().set(task_id="one"))
    outer = Batch(app=app).apply_async([kid])
    said = command(app, "batches", "show", outer.id, "--look")
    assert f"  pending: {kid.id}  it is a batch, sent: 1 of 1 pending  north\n" in said
    assert said.rstrip().endswith(f"batches show {kid.id}")
    (found,) = json.loads(command(app, "batches", "show", outer.id, "--look", "--json"))[
        "other_members"
    ]
    assert (found["id"], found["state"]) == (kid.id, "batch")

    store = find_workers_store(app)
    assert store is not None
    store.execute("DEL", ["celery"])
    said = command(app, "batches", "show", kid.id, "--look", status=1)
    assert "  missing: one  shop.mail  in no queue, and no worker holds it\n" in said
    (found,) = json.loads(command(app, "batches", "show", kid.id, "--json", status=1))[
        "missing_members"
    ]
    assert (found["member"], found["task"], found["sure"]) == ("one", "shop.mail", True)

    said = command(app, "batches", "show", outer.id, "--look", status=1)
    assert f"  pending: {kid.id}  it is a batch, sent: 1 of 1 pending, 1 missing  north\n" in said
    assert said.rstrip().endswith(f"batches resend {outer.id}")
    said = command(app, "batches", "resend", outer.id)
    assert said.splitlines() == [f"{outer.id} nothing done", f"{kid.id} 1 sent again"]

    BatchLedger(store).end([End(kid.id, "one", Outcome.FAILED)])
    store.execute("DEL", ["celery", batch_key(kid.id, "resent")])  # that was a while ago
    assert f"  failed: {kid.id}  a batch  north\n" in command(app, "batches", "show", outer.id)
    assert command(app, "batches", "resend", outer.id, "--failed").splitlines() == [
        f"{outer.id} nothing done",
        f"{kid.id} 1 sent again",
    ]
    BatchLedger(store).end([End(kid.id, "one", Outcome.SUCCEEDED)])
    said = command(app, "batches", "complete", outer.id, "--yes")
    assert said == f"{outer.id} has ended before, with its callbacks\n"


def test_members_that_have_failed(app: Celery) -> None:
    """They are named, as far as there is room, and with what is known of them."""
    ids = [f"{ID[:-2]}{number:02}" for number in range(25)]
    mail = app.tasks["shop.mail"]
    members = [mail.si().set(task_id=one) for one in ids]
    batch = Batch(app=app, on_complete=mail.si()).apply_async(members)
    store = find_workers_store(app)
    assert store is not None
    ledger, failed = BatchLedger(store), [End(batch.id, one, Outcome.FAILED) for one in ids]
    ledger.end(failed[:2])
    said = re.findall("  failed: (.*)", command(app, "batches", "show", batch.id))
    assert sorted(said) == [f"{one}  shop.mail" for one in ids[:2]]
    # One cannot be read, as of another app; of the other what was sent is gone.
    store.execute("HSET", [f"graceful:batch:{batch.id}:messages"], [ids[0], "?"])
    store.execute("HDEL", [f"graceful:batch:{batch.id}:messages"], ids[1:2])
    found = document(app, "Batch", "batches", "show", batch.id)["failed_members"]
    assert {one["member"]: one["task"] for one in found} == dict.fromkeys(ids[:2])
    ledger.end(failed[2:])
    said = command(app, "batches", "show", batch.id)
    assert said.count("\n  failed: ") == 20
    assert "\n  and 5 more that have failed\n" in said
    assert len(document(app, "Batch", "batches", "show", batch.id)["failed_members"]) == 20


def test_what_takes_away_asks(app: Celery, run: Callable[..., str]) -> None:
    store = find_workers_store(app)
    assert store is not None
    for task_id in (ID, "2"):
        put(store, Kept(task_id, "shop.mail", "why", 3, 1.0, "w1@a:01", {"raw": "{}"}))
    mail = app.tasks["shop.mail"]
    batch = Batch(app=app).apply_async([mail.s(), mail.s()])
    for line, question in {
        "quarantine delete --all": "Delete 2 tasks, with all that was sent, for good?",
        "quarantine delete 3 2": "Delete 1 task, with all that was sent, for good?",
        f"batches complete {batch.id}": "End 1 batch by force, 2 members of which have failed then",
        f"batches drop {batch.id} nothing": "Forget 1 batch with 2 members pending",
    }.items():
        for answer, hint in {"": "; --yes does not ask", "n\n": ""}.items():
            said = run(*line.split(), status=2, answer=answer)
            assert said.startswith(question), "nobody is there to answer"
            assert said.endswith(f"\nError: nothing was done{hint}\n")
            assert "Usage" not in said
        assert len(document(app, "QuarantinedTask", "quarantine", "list", status=1)) == 2
        assert document(app, "Batch", "batches", "show", batch.id)["pending"] == 2
    assert "2 deleted" in run("quarantine", "delete", "2", answer="y\n")
    assert "3 is not in quarantine" in run("quarantine", "delete", "3", status=1), "nothing to ask"
    assert "dropped" in run("batches", "drop", batch.id, answer="y\n")
    assert "there is no batch" in command(app, "batches", "complete", batch.id, status=1)


def test_ctrl_c_at_a_question(redis_db: RedisDB) -> None:
    argv = [*CELERY, "-A", APP, "graceful", "quiet"]
    env = environment({"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.url})
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=env) as asks:
        assert asks.stdout is not None
        said = b""
        while not said.endswith(b"[y/N]: "):
            more = asks.stdout.read1(1000)
            assert more, said
            said += more

        def ended() -> bool:
            has_heard, _, _ = select.select([asks.stdout], [], [], 0)
            if asks.poll() is None and not has_heard:
                asks.send_signal(signal.SIGINT)
            return asks.poll() is not None

        # Python hears of one that comes between the prompt and the read when the read has ended.
        wait_until(ended, "it has heard of it", 1.0)
        assert asks.returncode == 130
        assert asks.stdout.read() == b"\n"


def test_rescue() -> None:
    dead = {"w1@shop-worker-7d9f8b6c5-x2x4z:0123456789abcdef": 1, "w2@b:02": 12}

    def printed(found: Rescued, *, dry_run: bool = False) -> str:
        said = lines_of(found, 10.0, dry_run)
        return "\n".join(line for text, _ in said for line in folded(text, 80))

    assert (
        printed(Rescued("redis:6379", dead, 13, 8.0))
        == """\
w1@shop-worker-7d9f8b6c5-x2x4z:0123456789abcdef is dead and holds 1 claim
w2@b:02 is dead and holds 12 claims
Redis has just started, or is another server than before: nobody can be taken
    for dead for 8 s more
13 went back"""
    )
    assert printed(Rescued("redis:6379", dead)).endswith("\nsomebody else is at it")
    assert printed(Rescued("redis:6379", dead), dry_run=True).endswith("holds 12 claims")
    waiting = {"shop.new": 2}
    assert (
        printed(Rescued("redis:6379", {}, waiting=waiting, returned=2))
        == """\
2 messages wait for a worker that knows shop.new, and no worker looks after them
2 that waited went back
a plain worker that gets one and does not know its task discards it"""
    )
    assert "went back" not in printed(Rescued("store", {}, waiting=waiting), dry_run=True)
    assert (
        printed(Rescued("redis:6379", {}))
        == """\
no worker is dead: there is nothing to rescue; one that was killed counts as
    dead 10 s after its last heartbeat"""
    )


def test_what_rescue_says_of_other_brokers() -> None:
    """RabbitMQ need not be asked: nothing is wrong, whether it answers or not."""
    rabbit = make_app("amqp://127.0.0.1:1//", "rpc://")
    assert document(rabbit, "Rescued", "rescue") == []
    assert command(rabbit, "rescue", "--dry-run").endswith("there is nothing to rescue\n")
    assert "time-out of the broker's own" in command(make_app("memory://", ""), "rescue", status=3)


def test_probes(app: Celery, run: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "probe"
    args = ("--file", str(path))
    assert "no worker has written" in command(app, "probe", "live", *args, status=3)
    by_node = ("--file", f"{tmp_path}/%n.probe")
    said = command(app, "probe", "live", *by_node, status=3)
    assert re.search(r"/celery.probe: .*; that is the file of celery@\S+: -n names another", said)
    said = command(app, "probe", "live", *by_node, "-n", "w1@a", status=3)
    assert "/w1.probe: " in said
    assert "another worker" not in said
    path.write_text(celery_graceful_probe.written(60, "it is quiet"))
    assert run("probe", "live", *args) == "live\n"
    assert run("probe", "ready", *args, status=1) == "not ready: it is quiet\n"
    said = {"question": "ready", "ok": False, "said": "not ready: it is quiet"}
    assert document(app, "Probed", "probe", "ready", *args, status=1) == said
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    said = run("probe", "live", *args, status=1)
    assert re.fullmatch(r"not live: its event loop has not turned for 1\d\d s, of 60\n", said)


HOSTILE = "a\x1b[31mb\x1b]0;c\x07\nd\u202ee\x9bf"


def test_what_others_have_sent_does_not_reach_the_terminal_raw(
    app: Celery, redis_db: RedisDB
) -> None:
    store = find_workers_store(app)
    assert store is not None
    headers = {"id": HOSTILE, "task": HOSTILE, "argsrepr": HOSTILE}
    raw = json.dumps({"headers": headers, "properties": {}, "body": ""})
    put(store, Kept(HOSTILE, HOSTILE, HOSTILE, 3, 1.0, HOSTILE, {"list": "celery", "raw": raw}))
    saved = {f"c:{HOSTILE}": '["int", 1, false]', f"s:{HOSTILE}": '[1, "x"]'}
    saved["state"] = json.dumps(HOSTILE)
    redis_db.client.hset(key_of(HOSTILE, HOSTILE), mapping=saved)
    batch = Batch(app=app, description=HOSTILE, properties={"x": HOSTILE})
    batch.add(app.signature(HOSTILE))
    batch.apply_async()
    assert json.loads(command(app, "quarantine", "list", "--json", status=1))[0]["id"] == HOSTILE
    commands = [
        *(["status"], ["claims"], ["claims", HOSTILE], ["checkpoints", "list"], ["history"]),
        *(["checkpoints", "show", HOSTILE], ["history", HOSTILE], ["why", HOSTILE]),
        *(["quarantine", "list"], ["quarantine", "show", HOSTILE], ["quarantine", "show", "x"]),
        *(["batches", "list"], ["batches", "show", batch.id], ["batches", "show", HOSTILE]),
        *(["deploy", "mark", HOSTILE], ["history"], ["doctor"], ["stop", HOSTILE, "--yes"]),
        *(["quarantine", "retry", HOSTILE], ["quarantine", "retry", HOSTILE], ["why", HOSTILE]),
        *(["checkpoints", "clear", HOSTILE], ["checkpoints", "clear", HOSTILE, "--yes"]),
        *(["chaos", "kill-worker", HOSTILE, "--yes"], ["probe", HOSTILE]),
        *(["batches", "resend", HOSTILE], ["batches", "drop", HOSTILE, "--yes"]),
    ]
    for args in commands:
        said = command_or(app, *args)
        assert said
        raw = {letter for letter in said if letter != "\n" and not letter.isprintable()}
        assert (args, raw) == (args, set())


@pytest.mark.parametrize(
    "line",
    [
        *(
            "claims nope",
            "history nope",
            "why nope",
            "quiet nope",
            "resume nope",
            "stop nope --yes",
        ),
        *("checkpoints show nope", "checkpoints clear nope --yes"),
        *("quarantine show nope", "quarantine retry nope", "quarantine delete nope --yes"),
        *("batches show nope", "batches resend nope", "batches callback nope on_success"),
        *("batches complete nope --yes", "batches drop nope --yes", "chaos kill-worker nope --yes"),
    ],
)
def test_what_is_not_there_is_status_1(app: Celery, line: str) -> None:
    assert "nope" in command(app, *line.split(), status=1)
    command(app, *line.split(), "--json", status=1)


@pytest.mark.parametrize("line", ["why", "deploy mark"])
def test_what_is_empty_is_refused(app: Celery, line: str) -> None:
    assert "it is empty" in command(app, *line.split(), "", status=2)


@pytest.mark.parametrize(
    "line",
    [
        *("claims", "history", "rescue", "resume", "checkpoints list", "quarantine list"),
        *("quarantine retry --all", "batches list", "status", "doctor"),
    ],
)
def test_nothing_to_tell_is_fine(app: Celery, line: str) -> None:
    # But that nobody works, or has answered, is to be looked at.
    command(app, *line.split(), status=int(line in ("resume", "status")))


def test_an_app_that_cannot_be_loaded() -> None:
    """Celery says so, before any command of ours is looked for."""
    said = graceful_command("tests.apps.nowhere", "status", status=2)
    assert said.splitlines()[-1] == "The module tests.apps.nowhere was not found."
    assert "Traceback" not in said

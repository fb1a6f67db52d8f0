"""The result backend is away when the main process has to store what a task came to."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import chord
from celery.worker.request import Request

from tests.support.results_away import KEPT, Site
from tests.support.workers import wait_until, wait_until_heard

#: Celery stores since 5.7 that a message was rejected for good.
REJECTED = ["rejects", "member"] if hasattr(Request, "_success_was_stored") else []

#: Seconds until a hard time limit, of what begins when Redis is away.
LIMIT = 4
KILLED = {"task_id": "killed", "time_limit": LIMIT, "queue": "later"}

#: Of what such a limit has struck.
STRUCK = rf"killed\] has ended \(FAILURE: TimeLimitExceeded\({LIMIT},?\)\), and that cannot be"


def begin_later(site: Site) -> None:
    """What was sent before the result backend went away, and must not begin before."""
    wait_until_heard(site.app)
    site.app.control.add_consumer("later")


def test_what_ends_in_the_main_process_is_stored_later(site: Site) -> None:
    """Each once, with all that follows; and its loop goes on, though Celery would try for 19 s."""
    app, path = site.app, str(site.gate)
    env = {"TELLS": "1", "CONF_result_backend_transport_options": "{}"}
    with site.worker("prefork", **env) as worker:
        worker.ready()
        failing = [app.signature("fails_then")]
        killed = app.signature("late", ("",), **KILLED)
        revoked = app.signature("late", ("",), task_id="revoked")
        dies = app.signature("dies", (path,), task_id="dies")
        site.sent += [one.set(link_error=failing).apply_async() for one in (killed, dies)]
        site.sent.append(revoked.apply_async())
        if REJECTED:
            site.send("rejects")
            done = app.signature("follows", ("done",), task_id="done")
            member = app.signature("rejects", (path,), task_id="member")
            body = app.signature("all_done", task_id="body", link_error=failing)
            site.sent.append(chord([done, member], body).apply_async())
            site.all_end(done="SUCCESS")
            worker.wait_line(r"done\] succeeded")
        worker.wait_line(">> .* started", 2 + len(REJECTED))
        site.results.kill()
        begin_later(site)
        site.gate.touch()
        app.control.revoke("revoked", terminate=True)
        expires = {"countdown": 0.5, "expires": 0.1, "task_id": "expired"}
        site.sent.append(app.send_task("late", [path], **expires))
        worker.wait_line("dies.* cannot be stored: it is stored later, if")
        worker.wait_line("revoked.* cannot be stored: it is stored later, if")
        worker.wait_line(STRUCK)
        worker.wait_line(KEPT, 2 + len(REJECTED))
        wait_until_heard(app)
        assert worker.count("Connection to Redis lost") == 0
        assert worker.count(">> .* told of") == 2, "of what had been acknowledged, or was revoked"
        site.results.start()
        ends = dict.fromkeys(("killed", "dies", *REJECTED), "FAILURE")
        site.all_end(**ends, revoked="REVOKED", expired="REVOKED")
        worker.wait_line(">> .* failed killed TimeLimitExceeded")
        worker.wait_line(">> .* failed dies WorkerLostError")
        if REJECTED:
            site.all_end(body="FAILURE")
            worker.wait_line(">> .* failed body ChordError")
        worker.wait_line(">> .* told of revoked (revoked|expired)", 2)
        worker.wait_line(">> .* told of failure killed TimeLimitExceeded")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* told of revoked") == 2
        assert worker.count(">> .* failed") == 2 + bool(REJECTED)
        assert worker.count(">> .* started") == 3 + len(REJECTED)
    with site.worker("threads") as worker:
        site.send("follows")
        worker.wait_line(">> .* follows")
        assert worker.count("Task .* received") == 1, "all messages were acknowledged"
        worker.term()
        assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_graceful_task_that_is_revoked(pool: str, site: Site) -> None:
    """It ends at once: where it came again, nobody may know of that any more."""
    with site.worker(pool, TELLS="1") as worker:
        worker.ready()
        site.send("steady")
        worker.wait_line(">> .* started")
        site.results.kill()
        site.app.control.revoke("steady", terminate=True)
        worker.wait_line(">> .* told of revoked steady")
        site.results.start()
        site.all_end(steady="REVOKED")
        worker.term()
        assert worker.wait() == 0
    assert worker.count(">> .* told of") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_was_revoked_before_a_stop_does_not_come_again(pool: str, site: Site) -> None:
    with site.worker(pool, TELLS="1") as worker:
        worker.ready()
        names = ("late", "steady") if pool == "prefork" else ("steady",)
        for name in names:
            site.send(name)
        worker.wait_line(">> .* started", len(names))
        site.results.kill()
        for name in names:
            site.app.control.revoke(name, terminate=True)
            worker.wait_line(f">> .* told of revoked {name}")
        site.gate.touch()
        worker.term()
        worker.wait()
    site.results.start()
    with site.worker(pool) as worker:
        site.send("follows")
        worker.wait_line(">> .* follows")
        assert worker.count(">> .* started") == 0
        worker.term()
        assert worker.wait() == 0


def test_a_worker_that_stops_meanwhile(site: Site) -> None:
    """What it could not store comes again, as in plain Celery."""
    with site.worker("prefork", TELLS="1") as worker:
        worker.ready()
        site.sent.append(site.app.send_task("late", [str(site.gate)], **KILLED))
        site.results.kill()
        begin_later(site)
        worker.wait_line(STRUCK)
        worker.term()
        worker.wait_line("Stopped: 0 finished, 0 interrupted, 0 given up, 1 released")
        worker.wait()
        assert worker.count(">> .* told of") == 0
    site.results.start()
    site.gate.touch()
    with site.worker("prefork", QUEUE="later"):
        site.all_end(killed="SUCCESS")


def test_a_backend_that_is_full(site: Site) -> None:
    """It may be for days: no message is held for that."""
    with site.worker("prefork", TELLS="1") as worker, site.results.client() as client:
        worker.ready()
        site.sent.append(site.app.send_task("late", [""], **KILLED))
        client.config_set("maxmemory", 1)
        begin_later(site)
        worker.wait_line("killed.* cannot be stored: it is stored later, if")
        worker.wait_line(">> .* told of failure killed TimeLimitExceeded")
        client.config_set("maxmemory", 0)
        site.all_end(killed="FAILURE")
        worker.term()
        assert worker.wait() == 0


def test_a_database(database: Site, tmp_path: Path) -> None:
    """It cannot be asked in no time: each ends, and is kept without its message."""
    site, app, folder, away = database, database.app, database.results, tmp_path / "away"
    with site.worker("prefork", TELLS="1") as worker:
        worker.ready()
        site.sent.append(app.send_task("late", [""], **KILLED))
        folder.rename(away)
        begin_later(site)
        expires = {"countdown": 0.1, "expires": 0.01, "task_id": "expired"}
        site.sent.append(app.send_task("late", [""], **expires))
        worker.wait_line("has ended .*, and that cannot be stored: it is stored later, if", 2)
        worker.wait_line(">> .* told of revoked expired")
        worker.wait_line(">> .* told of failure killed TimeLimitExceeded")
        away.rename(folder)
        site.all_end(expired="REVOKED", killed="FAILURE")
        wait_until(lambda: worker.count("came to .* is stored") == 2, "each once")
        worker.term()
        assert worker.wait() == 0

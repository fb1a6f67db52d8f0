"""The result backend is away for longer than Celery tries: what a task came to stands."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from celery import chain, chord
from celery.backends.database import DatabaseBackend

from celery_graceful import Batch
from celery_graceful.testing.fake_monitor import FakeMonitor
from tests.conftest import RabbitVhost
from tests.servers import RedisServer
from tests.support.results_away import KEPT, Site
from tests.support.workers import wait_until

POOLS = [
    "prefork",
    "threads",
    *[pytest.param(p, marks=pytest.mark.slow) for p in ("gevent", "solo")],
]


@pytest.mark.parametrize("pool", POOLS)
def test_what_it_came_to_is_stored_later(pool: str, site: Site) -> None:
    """Of each, once: its result, what follows in its chain, its errback, its check-in."""
    app, path = site.app, str(site.gate)
    with closing(FakeMonitor()) as monitor:
        url = {"CONF_graceful_healthchecks_url": repr(monitor.ping_url)}
        with site.worker(pool, **url) as worker:
            worker.ready()
            late = app.signature("late", (path,), task_id="late")
            if pool == "solo":
                names = ["steady"]
                site.send("steady")
            else:
                names = ["late", "failing", "steady"]
                follows = chain(late, app.signature("follows", task_id="follows"))
                failing = app.signature("failing", (path,), task_id="failing")
                failing = failing.on_error(app.signature("fails_then"))
                site.sent += [follows.apply_async(), failing.apply_async()]
                site.send("steady")
                site.send("early")
            worker.wait_line(">> .* started", len(names) + (pool != "solo"))
            site.results.kill()
            site.gate.touch()
            worker.wait_line(KEPT, len(names))
            assert worker.count(">> .* failed") == 0
            if pool != "solo":
                worker.wait_line("early.* cannot be stored: it is stored later, if")
                worker.wait_line("follows.* cannot be stored: its message is held")
            wait_until(lambda: monitor.statuses("steady") == ["in_progress", "ok"], "it is closed")
            site.results.start()
            if pool == "solo":
                site.all_end(steady="SUCCESS")
            else:
                ends = dict.fromkeys(("late", "early", "steady", "follows"), "SUCCESS")
                site.all_end(**ends, failing="FAILURE")
                worker.wait_line(">> .* failed failing ValueError")
                assert app.backend.get_result("follows") == "late"
                children = app.backend.get_task_meta("late", cache=False)["children"]
                assert [one[0][0] for one in children] == ["follows"]
            worker.term()
            assert worker.wait() == 0
        assert worker.count(">> .* started") == len(names) + (pool != "solo")
        assert worker.count(">> .* follows") == (pool != "solo")
        assert worker.count(">> .* failed") == (pool != "solo")
        assert worker.count("Exception raised outside body") == 0
        assert monitor.statuses("steady") == ["in_progress", "ok"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_members_and_chords_succeed(pool: str, site: Site) -> None:
    app, path = site.app, str(site.gate)
    with site.worker(pool) as worker:
        worker.ready()
        members = [app.signature(name, (path,)) for name in ("late", "steady", "early")]
        done, bad = app.signature("all_done", ("batch",)), app.signature("all_done", ("failed",))
        batch = Batch(on_success=done, on_failure=bad, app=app)
        batch.apply_async(members)
        header = [app.signature("late", (path,)) for _ in range(2)]
        site.sent.append(chord(header, app.signature("all_done")).apply_async())
        worker.wait_line(">> .* started", 5)
        site.results.kill()
        site.gate.touch()
        worker.wait_line("has ended .*, and that cannot be stored", 5)
        site.results.start()
        worker.wait_line(">> .* all done .* batch")
        worker.wait_line(r">> .* all done \['late', 'late'\]")
        status = batch.status()
        assert (status.succeeded, status.failed) == (3, 0)
        worker.term()
        assert worker.wait() == 0
    assert worker.count(">> .* started") == 5
    assert worker.count(">> .* all done") == 2


def test_too_many_that_nobody_holds(
    start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """No message limits the number of those that were acknowledged early."""
    broker, results = start_server(RedisServer), start_server(RedisServer, appendonly=True)
    site = Site.of(broker.url(0), results, tmp_path / "go")
    site.env["MOST"] = "0"
    with site.worker("threads") as worker:
        worker.ready()
        site.send("early")
        site.send("late")
        worker.wait_line(">> .* started", 2)
        results.kill()
        site.gate.touch()
        worker.wait_line("early.* cannot be stored: it is lost, there are too many")
        worker.wait_line(KEPT)
        results.start()
        site.all_end(late="SUCCESS")
        assert site.state("early") == "PENDING"
        site.sent.clear()
        worker.term()
        assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_stops_meanwhile(pool: str, site: Site) -> None:
    """It does not wait; the next one runs what has ended, as far as it was acknowledged late."""
    with site.worker(pool) as worker:
        worker.ready()
        site.send("late")
        site.send("steady")
        worker.wait_line(">> .* started", 2)
        site.results.kill()
        site.gate.touch()
        worker.wait_line(KEPT, 2)
        worker.term()
        worker.wait_line("Stopped: 0 finished, 0 interrupted, 0 given up, 2 released")
        worker.wait()
    site.results.start()
    with site.worker(pool) as worker:
        site.all_end(late="SUCCESS", steady="SUCCESS")
        assert worker.count(">> .* started") == 2


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_only_has_begun_or_is_tried_again(pool: str, site: Site) -> None:
    """Neither is an end: that they cannot be stored ends nothing."""
    with site.worker(pool, CONF_task_track_started="True") as worker:
        worker.ready()
        site.send("trying")
        worker.wait_line(">> .* started trying")
        site.results.kill()
        site.gate.touch()
        worker.wait_line("RETRY of trying could not be stored")
        worker.wait_line("STARTED of trying could not be stored")
        worker.wait_line(KEPT)
        site.results.start()
        site.all_end(trying="SUCCESS")
        worker.term()
        assert worker.wait() == 0
    assert worker.count(">> .* started trying") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_that_waits_for_one_that_it_sent_meanwhile(pool: str, site: Site) -> None:
    """Nobody could listen for its end then; who asks later hears of it."""
    with site.worker(pool) as worker:
        worker.ready()
        site.send("asks")
        worker.wait_line(">> .* started asks")
        site.results.kill()
        site.gate.touch()
        worker.wait_line(">> .* sent")
        site.results.start()
        Path(f"{site.gate} on").touch()
        site.all_end(asks="SUCCESS")
        assert site.app.backend.get_result("asks") == "asked for"
        worker.term()
        assert worker.wait() == 0
    assert worker.count(">> .* started asks") == 1


def test_a_result_that_only_its_process_can_read(site: Site) -> None:
    """It is lost, and that is stored: the worker has others."""
    pickles = {"result_serializer": "pickle", "result_accept_content": ["json", "pickle"]}
    site.app.conf.update(pickles)
    settings = {f"CONF_{name}": repr(value) for name, value in pickles.items()}
    with site.worker("prefork", **settings) as worker:
        worker.ready()
        site.send("of_its_own_class")
        site.send("late")
        worker.wait_line(">> .* started", 2)
        site.results.kill()
        site.gate.touch()
        worker.wait_line(KEPT, 2)
        assert worker.count("of_its_own_class came to .SUCCESS. could not .* lost: Attrib") == 1
        site.results.start()
        site.all_end(of_its_own_class="FAILURE", late="SUCCESS")
        assert "Own" in str(site.app.backend.get_result("of_its_own_class"))
        worker.term()
        assert worker.wait() == 0


@pytest.mark.rabbitmq
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_connection_that_is_lost_meanwhile(
    pool: str, rabbit_vhost: RabbitVhost, start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """RabbitMQ delivers again what is held: it is recognised."""
    results = start_server(RedisServer, appendonly=True)
    site = Site.of(rabbit_vhost.url, results, tmp_path / "go")
    with site.worker(pool) as worker:
        worker.ready()
        site.send("late")
        worker.wait_line(">> .* started")
        results.kill()
        site.gate.touch()
        worker.wait_line(KEPT)
        wait_until(rabbit_vhost.cut, "it is cut", 0.1)
        worker.wait_line("was delivered again and still runs")
        results.start()
        site.all_end(late="SUCCESS")
        wait_until(lambda: rabbit_vhost.queue_length("celery") == 0, "nothing waits")
        site.sent.clear()
        worker.term()
        assert worker.wait() == 0
    assert worker.count(">> .* started") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_stop_while_the_broker_is_away_too(
    pool: str, start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """What was stored meanwhile is acknowledged, though no loop goes round."""
    broker, results = (start_server(RedisServer, appendonly=True) for _ in range(2))
    site = Site.of(broker.url(0), results, tmp_path / "go")
    with site.worker(pool) as worker:
        worker.ready()
        site.send("late")
        worker.wait_line(">> .* started")
        results.kill()
        broker.kill()
        site.gate.touch()
        worker.wait_line(r"Trying again in [2-9]\.00 seconds")
        if pool == "threads":  # of a child it is heard when the loop goes round, or at the stop
            worker.wait_line(KEPT)
        results.start()
        if pool == "threads":
            worker.wait_line("came to .* is stored")
        broker.start()
        worker.term()
        assert worker.wait() == 0
    with broker.client(0) as client:
        assert not client.exists("celery")
        assert not client.keys("graceful:claims:*")
    site.all_end(late="SUCCESS")
    site.sent.clear()
    site.app.close()


def test_a_database(database: Site, tmp_path: Path) -> None:
    """Another result backend, that says which of its errors are outages."""
    site, folder, away = database, database.results, tmp_path / "away"
    assert isinstance(pickle.loads(pickle.dumps(site.app.backend)), DatabaseBackend)
    with site.worker("prefork") as worker:
        worker.ready()
        site.send("late")
        worker.wait_line(">> .* started")
        folder.rename(away)
        site.gate.touch()
        worker.wait_line(KEPT)
        away.rename(folder)
        site.all_end(late="SUCCESS")
        worker.term()
        assert worker.wait() == 0
    assert worker.count(">> .* started") == 1

"""The ghost: a member that is pending, and exists nowhere.

On plain Celery's transport, where a message can be lost: what a worker had claimed is deleted when
it has died. Of a batch, and of a chord, the rest is the same.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import celery
import pytest
from celery import Celery, chord, states

from celery_graceful import Batch, Graceful
from tests.conftest import RedisDB
from tests.support.broker import graceful_command
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until

Start = Callable[..., Worker]

#: Since 5.7 Celery's own chords know whose part they have counted.
COUNTS_ONCE = tuple(map(int, celery.__version__.split(".")[:2])) >= (5, 7)


#: On kombu's own fetch; a batch that stands still for four seconds has its missing members listed.
OURS = {
    "CONF_graceful_reliable_fetch": "False",
    "CONF_graceful_batch_missing_after": "4",
    "CONF_graceful_lease_ttl": "10",
    "CONF_graceful_heartbeat_interval": "0.5",
}


@pytest.fixture
def app(redis_db: RedisDB) -> Iterator[Celery]:
    with Celery("ghost", broker=redis_db.url, backend=redis_db.backend_url) as app:
        app.set_current()
        yield app


@pytest.fixture
def start(redis_db: RedisDB) -> Iterator[Start]:
    """Starts workers, and ends them after the test."""
    with ExitStack() as stack:

        def start(concurrency: int = 2, **env: str) -> Worker:
            env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url, **env}
            worker = Worker("tests.apps.ghost", pool="threads", concurrency=concurrency, env=env)
            return stack.enter_context(worker)

        yield start


def lose_what_it_claims(worker: Worker, db: RedisDB) -> int:
    """Kill it, and delete what it held; how many messages are left in the queue."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    end_leases(db.client, worker)
    db.client.delete("unacked", "unacked_index")
    return int(db.client.llen("celery"))


class TestPlainCelery:
    def test_a_chord_waits_for_ever(
        self, app: Celery, start: Start, redis_db: RedisDB, tmp_path: Path
    ) -> None:
        gate = str(tmp_path / "gate")
        header = [app.signature("ghost.hold", (gate,)) for _ in range(20)]
        first = start(PLAIN="1")
        result = chord(header, app.signature("ghost.total")).apply_async()
        result.backend.result_consumer.stop()
        first.wait_line(">> .* started", 2)
        left = lose_what_it_claims(first, redis_db)
        assert 0 < left < 20
        Path(gate).touch()
        second = start(PLAIN="1")
        second.wait_line(">> .* ended", left)
        second.term()
        assert second.wait() == 0
        # The others have ended, and no message of it is left that anybody could run.
        assert not redis_db.client.exists("celery", "unacked")
        assert result.state == states.PENDING
        assert not second.count(">> .* total")

    def test_a_header_that_comes_twice(
        self, app: Celery, start: Start, redis_db: RedisDB, tmp_path: Path
    ) -> None:
        """Before 5.7 it counts twice: the body runs while another one has not ended."""
        gate = str(tmp_path / "gate")
        header = [
            app.signature("ghost.hold"),
            app.signature("ghost.hold"),
            app.signature("ghost.hold", (gate,)),
        ]
        chord(header, app.signature("ghost.total")).apply_async().backend.result_consumer.stop()
        again = redis_db.client.lindex("celery", -1)
        redis_db.client.rpush("celery", again)
        worker = start(PLAIN="1")
        worker.wait_line(">> .* ended", 3)
        if COUNTS_ONCE:
            assert not worker.count(">> .* total")
            Path(gate).touch()
            worker.wait_line(">> .* total 3")
        else:
            worker.wait_line(">> .* total")
            assert worker.count(">> .* ended") == 3, "the one with the gate has not"
        Path(gate).touch()
        worker.term()
        assert worker.wait() == 0


class TestOurs:
    @pytest.fixture
    def ours(self, app: Celery) -> Celery:
        app.conf.graceful_reliable_fetch = False
        Graceful(app)
        return app

    @pytest.fixture
    def ghosts(
        self, ours: Celery, start: Start, redis_db: RedisDB, tmp_path: Path
    ) -> Callable[..., tuple[Batch, int, Worker]]:
        """A batch of 100, of which some are lost, and a worker that has run the others."""

        def make(**env: str) -> tuple[Batch, int, Worker]:
            gate = str(tmp_path / "gate")
            batch = Batch(on_success=ours.signature("ghost.called"), app=ours)
            first = start(**OURS, **env)
            batch.apply_async(ours.signature("ghost.hold", (gate,)) for _ in range(100))
            first.wait_line(">> .* started", 2)
            left = lose_what_it_claims(first, redis_db)
            assert 0 < left < 100
            Path(gate).touch()
            second = start(**OURS, **env)
            second.wait_line(">> .* ended", left)
            return batch, 100 - left, second

        return make

    def test_a_chord_is_mended_by_the_workers(
        self, ours: Celery, start: Start, redis_db: RedisDB, tmp_path: Path
    ) -> None:
        """As plain Celery's above, which waits for ever."""
        ours.conf.graceful_track_chords = True
        env, gate = {**OURS, "CONF_graceful_track_chords": "True"}, str(tmp_path / "gate")
        first = start(**env)
        header = [ours.signature("ghost.hold", (gate,)) for _ in range(100)]
        result = chord(header, ours.signature("ghost.total")).apply_async()
        first.wait_line(">> .* started", 2)
        left = lose_what_it_claims(first, redis_db)
        assert 0 < left < 100
        Path(gate).touch()
        second = start(**env)
        lost, batch = 100 - left, Batch.load(result.parent.id, app=ours)
        second.wait_line(f"Batch {batch.id}: {lost} missing .*: {lost} sent again")
        assert result.get(timeout=TIMEOUT) == 100
        wait_until(lambda: batch.status().finished, "it has ended")
        assert batch.status().succeeded == 100
        assert second.count(">> .* total 100") == second.count(">> .* total") == 1

    def test_a_batch_is_mended_by_a_command(
        self, ghosts: Callable[..., tuple[Batch, int, Worker]], redis_db: RedisDB
    ) -> None:
        def command(*args: str, status: int = 0) -> str:
            env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url, **OURS}
            return graceful_command("tests.apps.ghost", "batches", *args, env=env, status=status)

        batch, lost, worker = ghosts(CONF_graceful_batch_repair="'off'")

        def listed() -> bool:
            status = batch.status()
            return status.missing == status.pending == lost

        wait_until(listed, "all of them are listed")
        shown = json.loads(command("show", batch.id, "--json", status=1))
        missing = {one["member"] for one in shown["missing_members"]}
        assert missing == redis_db.client.smembers(f"graceful:batch:{batch.id}:pending")
        assert f"{lost} missing" in command("list", status=1)
        assert command("resend", batch.id) == f"{batch.id} {lost} sent again\n"
        worker.wait_line(">> .* called")
        wait_until(lambda: batch.status().finished, "it has ended")
        assert batch.status().succeeded == 100
        assert worker.count(">> .* called") == 1

    def test_members_at_a_plain_worker_that_died(
        self, app: Celery, start: Start, redis_db: RedisDB, tmp_path: Path
    ) -> None:
        """They come back after an hour; until then it is said where they are, and what to do."""
        Graceful(app)
        env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url}

        def command(*args: str, status: int = 0) -> str:
            return graceful_command("tests.apps.ghost", *args, env=env, status=status)

        gate, batch = str(tmp_path / "gate"), Batch(app=app)
        batch.apply_async([app.signature("ghost.hold", (gate,))])
        (member,) = redis_db.client.smembers(f"graceful:batch:{batch.id}:pending")
        plain = start(PLAIN="1")
        plain.wait_line(">> .* started")
        # It gets a second to answer, and the machine may be slow.
        said = "no worker runs with celery_graceful, but without it"
        wait_until(lambda: said in command("status", status=1), said)
        assert not plain.count("pidbox command error"), "it knows what it was asked"
        os.killpg(plain.pid, signal.SIGKILL)
        plain.wait()
        assert f"batches show --look {batch.id}" in command("batches", "show", batch.id)
        said = f"{member}  a worker without claims (plain Celery) has taken it"
        assert said in command("batches", "show", batch.id, "--look")
        assert "none of its members is missing" in command("batches", "resend", batch.id)
        resend = f"batches resend --member={member} {batch.id}"
        assert resend in " ".join(command("why", member, status=1).split())
        Path(gate).touch()
        command(*resend.split())
        start().wait_line(">> .* ended")
        wait_until(lambda: batch.status().succeeded == 1, "it has ended")

    def test_a_batch_is_mended_by_the_workers(
        self, ghosts: Callable[..., tuple[Batch, int, Worker]]
    ) -> None:
        batch, lost, worker = ghosts()
        worker.wait_line(f"Batch {batch.id}: {lost} missing .*: {lost} sent again")
        worker.wait_line(">> .* called")
        wait_until(lambda: batch.status().finished, "it has ended")
        assert batch.status().succeeded == 100
        assert worker.count(">> .* called") == 1

"""The jobs of Celery's pool of processes, which are as billiard's."""

from __future__ import annotations

import threading
from functools import wraps
from typing import Any

import pytest
from billiard import pool as billiard_pool
from billiard.pool import CLOSE, RUN, TASK, ApplyResult, Pool
from celery.concurrency.asynpool import AsynPool

from celery_graceful.pools.jobs import Job, MakesJobs, can_make_jobs
from celery_graceful.pools.processes import graceful
from tests.support.workers import TIMEOUT


class OfAPool:
    """What a job asks of its pool."""

    soft_timeout = timeout = None
    lost_worker_timeout = 10.0

    def __init__(self) -> None:
        self._cache: dict[int, Any] = {}
        self.limits: list[tuple[Any, ...]] = []

    def on_timeout_set(self, *args: Any) -> None:
        self.limits.append(args)

    def on_timeout_cancel(self, job: Any) -> None:
        self.limits.append((job,))


@pytest.fixture
def pool() -> OfAPool:
    return OfAPool()


def test_billiards_jobs_are_known_here() -> None:
    """A new version: look at ``billiard.pool.Pool.apply_async`` and ``ApplyResult.__init__``."""
    assert can_make_jobs(AsynPool)
    assert graceful(AsynPool).apply_async is MakesJobs.apply_async
    made, plain = Job(OfAPool()), ApplyResult({}, None)
    for name, value in vars(plain).items():
        mine = getattr(made, name)
        if name not in ("_mutex", "_event", "_job", "_cache", "_lost_worker_timeout"):
            assert mine == value, name
    assert plain._lost_worker_timeout == billiard_pool.LOST_WORKER_TIMEOUT
    assert type(made._mutex) is type(plain._mutex)
    used = {"is_set", "set", "wait"}
    code = [one.__code__ for one in vars(ApplyResult).values() if hasattr(one, "__code__")]
    assert {n for one in code if "_event" in one.co_names for n in one.co_names} & used == used


def test_a_pool_that_makes_its_own_jobs_goes_on_to_do_so() -> None:
    class Own(AsynPool):  # type: ignore[misc]
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            return "own"

    assert not can_make_jobs(Own)
    assert graceful(Own).apply_async is Own.apply_async


def test_other_jobs_than_billiards_are_made_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Traced(ApplyResult):  # type: ignore[misc]
        pass

    monkeypatch.setattr(billiard_pool, "ApplyResult", Traced)
    assert not can_make_jobs(AsynPool)
    assert graceful(AsynPool).apply_async is Pool.apply_async


def test_who_watches_how_they_are_made_goes_on_to_do_so(monkeypatch: pytest.MonkeyPatch) -> None:
    @wraps(Pool.apply_async)
    def traced(*args: Any, **kwargs: Any) -> Any: ...

    with monkeypatch.context() as patched:
        patched.setattr(Pool, "apply_async", traced)
        assert not can_make_jobs(AsynPool)
    with monkeypatch.context() as patched:
        patched.setattr(ApplyResult, "__init__", lambda *args, **kwargs: None)
        assert not can_make_jobs(AsynPool)
    assert can_make_jobs(AsynPool)


def test_a_later_billiard_whose_jobs_have_more(monkeypatch: pytest.MonkeyPatch) -> None:
    @wraps(make := Job.__init__)
    def knows_less(self: Job, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        del self._send_ack

    monkeypatch.setattr(Job, "__init__", knows_less)
    assert not can_make_jobs(AsynPool)


def test_it_ends_as_billiards(pool: OfAPool) -> None:
    said: list[Any] = []
    job = Job(pool, callback=said.append, accept_callback=lambda *args: said.append(args))
    assert pool._cache == {job._job: job}
    assert not job.ready()
    job._ack(None, 1.5, 77, None)
    assert (job.accepted(), job.worker_pids(), said) == (True, [77], [(77, 1.5)])
    job._set(None, (True, "done"))
    assert job.ready()
    assert job.get() == said[-1] == "done"
    assert pool._cache == {}
    assert pool.limits == [], "nobody watches what has no limit"
    assert "ready:True" in repr(job)


def test_who_waits_is_told(pool: OfAPool) -> None:
    job = Job(pool)
    with pytest.raises(billiard_pool.TimeoutError):
        job.get(timeout=0.01)
    heard: list[Any] = []
    waiting = [threading.Thread(target=lambda: heard.append(job.get(TIMEOUT))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    job._set(None, (True, 42))
    for thread in waiting:
        thread.join(TIMEOUT)
    assert heard == [42] * 3
    assert job.get(timeout=0) == 42


@pytest.mark.parametrize("limits", [{"timeout": 5}, {"soft_timeout": 3}])
def test_a_limit_is_watched(pool: OfAPool, limits: dict[str, Any]) -> None:
    job = Job(pool, **limits)
    job._ack(None, 1.5, 77, None)
    job._set(None, (True, None))
    soft, hard = limits.get("soft_timeout"), limits.get("timeout")
    assert pool.limits == [(job, soft, hard), (job,)]


def test_the_pools_own_limits_go_for_all(pool: OfAPool) -> None:
    pool.timeout = 9  # type: ignore[assignment]
    job = Job(pool, soft_timeout=3)
    job._ack(None, 1.5, 77, None)
    assert pool.limits == [(job, 3, 9)]


class Base:
    """As much of a pool as a job is handed to."""

    threads = synack = putlocks = False
    _state = RUN

    def apply_async(self, *args: Any, **options: Any) -> Any:
        return "as ever"


class Asked(MakesJobs, OfAPool, Base):
    def __init__(self) -> None:
        super().__init__()
        self.put: list[Any] = []
        self._quick_put = self.put.append


def test_it_is_handed_on_with_its_number() -> None:
    pool = Asked()
    job = pool.apply_async(max, (1, 2), {"default": 3}, callback=print, correlation_id="id")
    assert type(job) is Job
    assert (job.correlation_id, job._callback) == ("id", print)
    assert pool.put == [(TASK, (job._job, None, max, (1, 2), {"default": 3}))]
    assert type(pool.apply_async(max, waitforslot=False)) is Job
    assert pool.put[-1][1][3:] == ((), {})


@pytest.mark.parametrize("name", ["threads", "synack", "putlocks"])
def test_where_others_have_a_say_billiard_makes_it(name: str) -> None:
    pool = Asked()
    setattr(pool, name, True)
    assert pool.apply_async(max) == "as ever"
    assert pool.put == []


def test_where_it_is_not_called_as_celery_does() -> None:
    pool = Asked()
    assert pool.apply_async(max, (), {}, print) == "as ever"
    assert pool.apply_async(max, waitforslot=True) == "as ever"
    pool._state = CLOSE
    assert pool.apply_async(max) == "as ever"

"""What a result backend is asked for while its server is away, in the process of the task."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.trace import build_tracer
from celery.backends.base import Backend
from celery.backends.cache import CacheBackend
from celery.backends.database import DatabaseBackend
from celery.backends.redis import RedisBackend
from celery.exceptions import BackendStoreError, QueueNotFound, SoftTimeLimitExceeded
from kombu import exceptions as kombu_exceptions
from kombu.serialization import register, unregister
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from celery_graceful import Graceful
from celery_graceful.claims.fence import CLAIM, DELIVERY
from celery_graceful.monitors.tracer import trace_with_check_in
from celery_graceful.results.outlasting import Outlasting, is_outage, outlasting
from celery_graceful.runs.unstored import take, unstored
from tests.support.processes import free_port

AWAY = ConnectionError("away")


@pytest.fixture
def app() -> Celery:
    """Nobody listens where its results are."""
    app = Celery(broker="memory://", backend=f"redis://127.0.0.1:{free_port()}/0")
    app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
    Graceful(app)
    return app


def seven() -> int:
    return 7


def run(app: Celery, body: Any, **fields: Any) -> Any:
    """What Celery's tracer says of a run of a task."""
    return deliver(traced(app, body), **fields)


def traced(app: Celery, body: Any) -> Any:
    task = app.task(name="task")(body)
    task.__trace__ = build_tracer(task.name, task, app=app)
    trace_with_check_in(task)
    return task


def deliver(task: Any, **fields: Any) -> Any:
    request = {"id": "one", "delivery_info": {}, "is_eager": False, DELIVERY: "a token", **fields}
    return task.__trace__("one", (), {}, request)


def test_a_result_goes_along_with_the_end(app: Celery) -> None:
    done = run(app, seven)
    assert done.info is None
    text = pickle.loads(pickle.dumps(done.retstr))
    found = take(text, "id")
    assert text == "7"
    assert found is not None
    assert (found.state, found.result, found.stores, found.refused) == ("SUCCESS", 7, True, False)
    assert take(text, "id") is None
    assert not unstored


def test_two_runs_of_one_task_at_once(app: Celery) -> None:
    """As on threads, where a task that is tried again begins before its last run is over."""
    both_left = threading.Barrier(2)

    def seven_once() -> int:
        if threading.current_thread() is threading.main_thread():
            raise LookupError
        return seven()

    def on_end(**_: Any) -> None:
        both_left.wait(20)

    # Celery registers a task before it is bound to its app: not to be made by two at once.
    task = traced(app, seven_once)
    signals.task_postrun.connect(on_end)
    try:
        with ThreadPoolExecutor() as pool:
            other = pool.submit(deliver, task)
            failed = take(deliver(task).retval, "id")
            succeeded = take(other.result().retstr, "id")
    finally:
        signals.task_postrun.disconnect(on_end)
    assert failed is not None
    assert succeeded is not None
    assert (failed.state, succeeded.result) == ("FAILURE", 7)
    assert not unstored


def test_so_does_a_failure(app: Celery) -> None:
    def fail() -> None:
        raise LookupError("as ever")

    done = run(app, fail)
    found = take(pickle.loads(pickle.dumps(done.retval)), "id")
    assert found is not None
    assert (found.state, repr(found.result)) == ("FAILURE", "LookupError('as ever')")
    assert "as ever" in str(found.traceback)


class OneWay:
    """It is pickled, and nothing can be made of that."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def lock() -> Any:
    return threading.Lock()


def one_way() -> Any:
    return OneWay()


@pytest.mark.parametrize("body", [lock, one_way])
def test_what_no_pipe_takes_is_left_to_celery(app: Celery, body: Callable[[], Any]) -> None:
    app.conf.result_serializer = "lenient"
    register("lenient", str, str, "text/plain", "utf-8")
    try:
        with pytest.raises(ConnectionError):
            run(app, body)
    finally:
        unregister("lenient")
    assert not unstored


def test_a_run_that_is_no_delivery_is_left_to_celery(app: Celery) -> None:
    with pytest.raises(ConnectionError):
        run(app, seven, is_eager=True)


def test_which_errors_are_outages(app: Celery) -> None:
    backend = app.backend
    assert is_outage(backend, AWAY)
    for kind in (BackendStoreError, SoftTimeLimitExceeded):
        told = kind("failed to store result")
        assert not is_outage(backend, told)
        told.__context__ = AWAY
        assert is_outage(backend, told)
    failed = LookupError()
    failed.__context__ = AWAY
    assert not is_outage(backend, failed)


@pytest.mark.parametrize("kind", [KeyError, QueueNotFound, FileNotFoundError, PermissionError])
def test_what_is_sent_then_is_no_outage_of_redis(app: Celery, kind: type[Exception]) -> None:
    """An errback to an unknown queue, a file of the user's: kombu takes them for lost connections.

    Kept, they would be tried again and again.
    """
    assert not is_outage(app.backend, kind())


@pytest.mark.skipif(
    DatabaseBackend.exception_safe_to_retry is Backend.exception_safe_to_retry,
    reason="Celery before 5.7",
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_what_a_database_does_not_take_is_no_outage(tmp_path: Path, is_wrapped: bool) -> None:
    app = Celery(backend=f"db+sqlite:///{tmp_path}/results.db", set_as_current=False)

    def found(kind: type[DBAPIError]) -> bool:
        raised: Exception = kind("INSERT", {}, Exception("too long"))
        assert app.backend.exception_safe_to_retry(raised)
        if is_wrapped:
            told = BackendStoreError("failed to store result")
            told.__context__, raised = raised, told
        return is_outage(app.backend, raised)

    assert found(OperationalError)
    assert not any(map(found, (DataError, IntegrityError, NotSupportedError, ProgrammingError)))


def test_other_backends() -> None:
    made = outlasting(RedisBackend)
    assert made is outlasting(RedisBackend)
    assert issubclass(made, (Outlasting, RedisBackend))
    assert made.__name__ == "RedisBackend"
    assert outlasting(CacheBackend) is CacheBackend


def test_what_comes_again_is_run_where_nobody_knows_whether_it_has_succeeded(app: Celery) -> None:
    app.conf.worker_deduplicate_successful_tasks = True
    done = run(app, seven, delivery_info={"redelivered": True})
    found = take(done.retstr, "id")
    assert found is not None
    assert found.result == 7


def test_a_server_that_is_no_master_is_away(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not refuse for days, as one that is full."""
    for error, refused in ((ReadOnlyError("a replica"), False), (OutOfMemoryError("full"), True)):

        def store(*args: Any, error: Exception = error, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(RedisBackend, "store_result", store)
        found = take(run(app, seven).retstr, "id")
        assert found is not None
        assert found.refused is refused


def test_a_broker_s_error_that_the_task_raised_is_its_own(app: Celery) -> None:
    """Not of who sends what follows it, whose message would be kept."""

    def other_broker() -> None:
        raise kombu_exceptions.OperationalError("of another broker")

    found = take(run(app, other_broker, **{CLAIM: "worker/1"}).retval, "id")
    assert found is not None
    assert repr(found.result) == "OperationalError('of another broker')"

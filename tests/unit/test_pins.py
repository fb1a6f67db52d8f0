"""Celery's, kombu's and billiard's private names that this package stands on.

Each is looked up in the versions installed: when one of them moves, the test that fails says
which. And nothing private is used that is not pinned here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import celery
import pytest
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import Celery, chord, group
from celery.app import trace
from celery.app.task import Context, Task
from celery.concurrency.asynpool import AsynPool
from celery.events.state import State as CeleryState
from celery.worker.request import Request
from eventlet.greenpool import GreenPool
from gevent.pool import Pool as GeventPool
from kombu import Connection, Consumer, Queue
from kombu.utils.objects import cached_property

import celery_graceful
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.processes import LOOPBACK
from tests.support.workers import wait_until

PACKAGE = Path(celery_graceful.__file__).parent

#: Attributes: where, and the parameters that are passed or overridden (None: no callable).
NAMES: dict[str, list[str] | None] = {
    # billiard: the pool and its children
    "billiard.common:REMAP_SIGTERM": None,
    "billiard.common:_shutdown_cleanup": ["signum", "frame"],
    "billiard.pool:SIG_SOFT_TIMEOUT": None,
    "billiard.pool:Pool": None,
    "billiard.pool:Pool.Worker": None,
    "billiard.pool:Pool.terminate_job": ["pid", "sig"],
    "billiard.pool:Worker.after_fork": [],
    "billiard.pool:TimeoutHandler._trywaitkill": ["worker"],
    "billiard.pool:PoolThread.close": [],
    "billiard.pool:Pool.create_result_handler": [],
    "billiard.pool:Pool._create_worker_process": ["i"],
    "billiard.pool:Worker._make_child_methods": [],
    "billiard.pool:ApplyResult.discard": [],
    "billiard.pool:ApplyResult._set": ["i", "obj"],
    "billiard.exceptions:Terminated": None,
    "billiard.exceptions:WorkerLostError": None,
    "billiard.einfo:ExceptionWithTraceback": None,
    # celery: the worker
    "celery.apps.worker:Worker": None,
    "celery.apps.worker:_reload_current_worker": [],
    "celery.worker.worker:WorkController._send_worker_shutdown": [],
    "celery.worker.state:Persistent.save": [],
    "celery.worker.state:Persistent._is_open": None,
    "celery.local:Proxy._get_current_object": None,
    # gevent, eventlet: the hub of a thread, which their public functions make where there is none
    "gevent._hub_local:get_hub_if_exists": [],
    "eventlet.hubs:_threadlocal": None,
    # gevent, eventlet: locks that real threads use as well
    "gevent.thread:LockType.acquire": ["blocking", "timeout"],
    "gevent.thread:LockType._TIMEOUT_MAX": None,
    "eventlet.semaphore:Semaphore.acquire": ["blocking", "timeout"],
    "eventlet.semaphore:Semaphore.release": ["blocking"],
    "eventlet.semaphore:Semaphore._do_acquire": [],
    "eventlet.lock:Lock.release": ["blocking"],
    # SQLAlchemy: documented, in spite of its name
    "sqlalchemy.engine:Row._mapping": None,
    # SQLAlchemy: what of a select batches would change
    "sqlalchemy:Select._distinct_on": None,
    "sqlalchemy:Select._fetch_clause": None,
    "sqlalchemy:Select._group_by_clauses": None,
    "sqlalchemy:Select._limit_clause": None,
    "sqlalchemy:Select._offset_clause": None,
    "celery.worker.control:Panel.data": None,
    "celery.worker.control:control_command": None,
    "celery.signals:before_task_publish.receivers": None,
    "celery.worker.state:should_stop": None,
    "celery.worker.state:should_terminate": None,
    "celery.worker.state:task_ready": ["request"],
    "celery.worker.state:active_requests": None,
    "celery.worker.state:reserved_requests": None,
    "celery.worker.control:Panel.meta": None,
    "celery.bin.control:control": None,
    "celery.bin.control:inspect": None,
    "celery.worker.consumer.control:Control": None,
    "celery.worker.pidbox:gPidbox.loop": ["c"],
    "celery.worker.pidbox:gPidbox.on_stop": [],
    "celery.worker.request:Request.acknowledge": [],
    "celery.worker.request:Request.reject": ["requeue"],
    "celery.worker.request:Request.revoked": [],
    "celery.worker.request:Request.on_accepted": ["pid", "time_accepted"],
    "celery.worker.request:Request.on_failure": ["exc_info", "send_failed_event", "return_ok"],
    "celery.worker.request:Request.on_success": ["failed__retval__runtime"],
    "celery.worker.request:Request.on_timeout": ["soft", "timeout"],
    "celery.worker.request:Request.execute_using_pool": ["pool"],
    "celery.worker.request:Request.send_event": ["type"],
    "celery.worker.request:Request.terminate": ["pool", "signal"],
    "celery.worker.request:Request.humaninfo": [],
    "celery.worker.request:Request._announce_revoked": [],
    "celery.worker.request:Request._announce_cancelled": [],
    "celery.worker.request:Request._already_revoked": None,
    "celery.worker.request:Request._already_cancelled": None,
    "celery.worker.request:Request._context": None,
    "celery.worker.request:Request._on_ack": None,
    "celery.worker.request:Request._on_reject": None,
    "celery.worker.request:Request.connection_errors": None,
    "celery.worker.request:Request.message": None,
    "celery.worker.strategy:proto1_to_proto2": ["message", "body"],
    "celery.worker.worker:WorkController._process_task": ["req"],
    "celery.worker.consumer.consumer:Consumer.call_soon": ["p"],
    "celery.worker.consumer.consumer:Consumer.perform_pending_operations": [],
    "celery.worker.consumer.consumer:Consumer._restore_prefetch_count_after_connection_restart": [
        "p"
    ],
    "celery.worker.consumer.consumer:Consumer.create_task_handler": [],
    "celery.worker.consumer.consumer:Consumer.update_strategies": [],
    "celery.worker.consumer.consumer:Consumer.on_decode_error": ["message", "exc"],
    "celery.worker.consumer.consumer:Consumer.on_invalid_task": ["body", "message", "exc"],
    "celery.worker.consumer.consumer:Consumer.on_unknown_message": ["body", "message"],
    "celery.worker.consumer.consumer:Consumer.on_unknown_task": ["body", "message", "exc"],
    "celery.app.task:Task.Strategy": None,
    "celery.backends.base:Backend.exception_safe_to_retry": ["exc"],
    "kombu.transport.virtual.base:Message.serializable": [],
    "celery.worker.request:create_request_cls": ["base", "task", "pool", "hostname", "eventer"],
    # celery: apps, tasks and pools
    "celery.canvas:_chain": None,
    "celery.app.task:Task.on_replace": ["sig"],
    "celery.app.base:Celery.create_task_cls": [],
    "celery.app.base:Celery.task_cls": None,
    "celery.app.task:Task.Request": None,
    "celery.app.task:Task.__trace__": None,
    "celery.app.task:Context._protected": None,
    "celery.app.task:Context._get_custom_headers": ["args", "kwargs"],
    "celery.app.task:Context.called_directly": None,
    "celery.app.task:Context.ignore_result": None,
    "celery.app.task:Context.is_eager": None,
    "celery.app.task:Context.timelimit": None,
    "celery.app.trace:TraceInfo.__init__": ["state", "retval"],
    "celery.app.trace:build_tracer": ["name", "task", "loader", "hostname", "app", "eager"],
    "celery.app.trace:_install_stack_protection": [],
    "celery.app.trace:reset_worker_optimizations": ["app"],
    "celery.concurrency.asynpool:AsynPool": None,
    "celery.concurrency.asynpool:AsynPool.Worker": None,
    "celery.concurrency.asynpool:AsynPool.flush": [],
    "celery.concurrency.asynpool:AsynPool.register_with_event_loop": ["hub"],
    "celery.concurrency.asynpool:AsynPool._track_child_process": ["proc", "hub"],
    "celery.concurrency.asynpool:_get_job_writer": ["job"],
    "celery.concurrency.asynpool:AsynPool._create_write_handlers": ["hub"],
    "celery.concurrency.asynpool:AsynPool.ResultHandler": None,
    "celery.concurrency.asynpool:AsynPool.ResultHandler._make_process_result": ["hub"],
    "celery.concurrency.asynpool:AsynPool.on_partial_read": ["job", "proc"],
    "celery.concurrency.asynpool:AsynPool.process_flush_queues": ["proc"],
    "celery.concurrency.asynpool:AsynPool.WorkerProcess": ["worker"],
    "celery.concurrency.asynpool:AsynPool.on_job_ready": ["job", "i", "obj", "inqW_fd"],
    "celery.concurrency.asynpool:AsynPool.on_job_process_down": ["job", "pid_gone"],
    "celery.concurrency.asynpool:AsynPool._event_process_exit": ["hub", "proc"],
    "celery.concurrency.asynpool:AsynPool._untrack_child_process": ["proc", "hub"],
    "celery.concurrency.base:BasePool.on_start": [],
    "celery.concurrency.base:BasePool.on_stop": [],
    "celery.concurrency.base:BasePool.is_green": None,
    "celery.concurrency.base:BasePool.uses_semaphore": None,
    "celery.concurrency.base:BasePool.apply_async": ["target", "args", "kwargs"],
    "celery.concurrency.base:BasePool._pool": None,
    "celery.concurrency.base:BasePool._does_debug": None,
    "celery.concurrency.base:apply_target": ["target", "args", "kwargs", "callback"],
    "celery.concurrency.thread:TaskPool.on_apply": ["target", "args", "callback"],
    "celery.app.trace:_localized": None,
    "celery.app.trace:fast_trace_task": ["request", "body", "content_type"],
    "celery.app.trace:trace_task_ret": ["request", "body", "content_type"],
    "celery.concurrency.prefork:TaskPool.Pool": None,
    "celery.concurrency.prefork:TaskPool.BlockingPool": None,
    # kombu: the event loop, the Redis transport, and consumers
    "kombu.asynchronous.hub:Hub._pop_ready": [],
    "kombu.asynchronous.hub:Hub.fire_timers": [],
    "celery.worker.loops:_quick_drain": ["connection", "timeout"],
    "kombu.messaging:Consumer.channel": None,
    "kombu.message:Message._decode": [],
    "kombu.transport.redis:Channel._get_pool": [],
    "kombu.transport.redis:Channel._get_publish_topic": ["exchange", "routing_key"],
    "kombu.transport.redis:Channel.keyprefix_queue": None,
    "kombu.transport.redis:Channel._lookup": ["exchange", "routing_key"],
    "kombu.transport.redis:Channel._q_for_pri": ["queue", "pri"],
    "kombu.transport.redis:Channel._get_message_priority": ["message", "reverse"],
    "kombu.transport.redis:Channel.active_queues": None,
    "kombu.transport.redis:Channel.global_keyprefix": None,
    "kombu.transport.redis:Channel.unacked_key": None,
    "kombu.transport.redis:Channel.unacked_index_key": None,
    "kombu.transport.redis:Transport.driver_type": None,
    "kombu.transport.redis:SentinelTransport.Channel": None,
    "kombu.transport.redis:Channel._basic_cancel": ["consumer_tag"],
    "kombu.transport.redis:Channel._brpop_start": ["timeout"],
    "kombu.transport.redis:Channel._brpop_read": [],
    "kombu.transport.redis:Channel._on_connection_disconnect": ["connection"],
    "kombu.transport.redis:Channel._pool": None,
    "kombu.transport.redis:Channel._async_pool": None,
    "kombu.transport.redis:Channel._in_poll": None,
    "kombu.transport.redis:Channel._put": ["queue", "message"],
    "kombu.transport.redis:Channel._fanout_queues": None,
    "kombu.transport.redis:Channel.queue_order_strategy": None,
    "kombu.transport.redis:Channel.priority_steps": None,
    "kombu.transport.redis:Channel.conn_or_acquire": [],
    "kombu.transport.redis:Channel._create_client": ["asynchronous"],
    "kombu.transport.redis:Channel.pool": None,
    "kombu.transport.redis:Transport._deliver": ["message", "queue"],
    "kombu.transport.redis:QoS.append": ["message", "delivery_tag"],
    "kombu.transport.redis:QoS.restore_unacked": ["client"],
    "kombu.transport.redis:QoS.restore_unacked_once": ["stderr"],
    "kombu.transport.redis:QoS.can_consume_max_estimate": [],
    "kombu.connection:Connection.get_transport_cls": [],
    "kombu.connection:Connection.switch": ["conn_str"],
    "kombu.connection:Connection.__eqhash__": [],
    "kombu.connection:Connection._ensure_connection": ["max_retries", "reraise_as_library_errors"],
    "kombu.connection:Connection._info": ["resolve"],
    "kombu.connection:ConnectionPool.new": [],
    "celery.app.base:Celery.amqp_cls": None,
    # celery: chords
    "celery.app.base:Celery._get_backend": [],
    "celery.app.backends:by_url": ["backend", "loader"],
    "celery.backends.base:Backend.apply_chord": ["header_result_args", "body"],
    "celery.backends.base:Backend.fallback_chord_unlock": ["header_result", "body"],
    "celery.backends.base:Backend.chord_error_from_stack": ["callback", "exc"],
    "celery.backends.base:Backend.on_chord_part_return": ["request", "state", "result"],
    "celery.backends.base:Backend.set_chord_size": ["group_id", "chord_size"],
    "celery.backends.redis:RedisBackend._chord_zset": None,
    "celery.backends.redis:RedisBackend._unpack_chord_result": ["tup", "decode"],
    "celery.backends.redis:RedisBackend.get_key_for_group": ["group_id", "key"],
    # celery: what is stored of a task, and what was stored before
    "celery.backends.base:KeyValueStoreBackend._store_result": ["task_id"],
    "celery.backends.base:KeyValueStoreBackend._set_with_state": ["key", "value", "state"],
    "celery.backends.base:KeyValueStoreBackend._get_task_meta_for": ["task_id"],
    "celery.backends.base:Backend._get_result_meta": ["result", "state", "traceback", "request"],
    "celery.backends.base:Backend._encode": ["data"],
    "celery.backends.redis:RedisBackend._set": ["key", "value"],
    "celery.backends.redis:RedisBackend.ResultConsumer": None,
    "celery.backends.redis:ResultConsumer.consume_from": ["task_id"],
    "celery.backends.redis:ResultConsumer.cancel_for": ["task_id"],
    "celery.backends.redis:ResultConsumer.drain_events": ["timeout"],
    "celery.backends.redis:ResultConsumer.on_state_change": ["meta", "message"],
    "celery.backends.redis:ResultConsumer._pubsub": None,
    "celery.backends.redis:ResultConsumer._reconnect_pubsub": [],
    "celery.backends.redis:ResultConsumer.reconnect_on_error": [],
    "kombu.utils.json:dumps": ["s", "cls"],
    "celery.canvas:group._apply_tasks": ["tasks", "producer", "app", "p", "chord"],
    "celery.result:ResultSet._failed_join_report": [],
    "celery.app.amqp:AMQP.Connection": None,
    "kombu.transport.pyamqp:Transport.driver_type": None,
    "kombu.utils.collections:HashedSeq": None,
    "kombu.utils.json:loads": ["s", "object_hook"],
    "kombu.utils.json:object_hook": ["o"],
    "billiard.pool:ApplyResult._write_to": None,
    "billiard.pool:ApplyResult._scheduled_for": None,
    "billiard.process:BaseProcess._is_alive": [],
    # sentry: sending at once, and its receivers that close check-ins
    "sentry_sdk.client:_Client.capture_event": ["event"],
    "sentry_sdk.transport:HttpTransport._check_disabled": ["category"],
    "sentry_sdk.transport:HttpTransport._get_pool_options": [],
    "sentry_sdk.transport:HttpTransport._send_envelope": ["envelope"],
    "sentry_sdk.transport:HttpTransport.on_dropped_event": [],
    "sentry_sdk.integrations.celery.beat:crons_task_success": ["sender"],
    "sentry_sdk.integrations.celery.beat:crons_task_failure": ["sender"],
    "sentry_sdk.integrations.celery.beat:crons_task_retry": ["sender"],
    # celery: the ends of a task, and beat
    "celery.app.trace:trace_ok_t.info": None,
    "celery.beat:Scheduler.apply_async": ["entry"],
    "celery.beat:Service.scheduler": None,
    # Python: locks of imports
    "importlib:_bootstrap": None,
    "importlib._bootstrap:_ModuleLock": None,
    "importlib._bootstrap:_ModuleLock.acquire": [],
    "importlib._bootstrap:_ModuleLockManager": None,
    "importlib._bootstrap:_ModuleLockManager.__enter__": [],
}

#: Private names that are set on instances only: the tests below this table have them.
INSTANCE = {
    "_accepted",
    "_active_queues",
    "_active_tags",
    "_add_driver_info",  # of a result backend: tests/integration/test_results_one_trip.py
    "_active_writers",  # of a pool, as the next ones: tests/unit/pools/test_processes.py
    "_result_handler",
    "_sentinel_poll",
    "_active_writes",  # of a pool, as the next one: tests/unit/pools/test_pipes.py
    "_all_inqueues",
    "_available_connections",
    "_backend_cache",
    "_basic_consume",
    "_chan_to_sock",  # as the next one: tests/integration/test_listening.py
    "_fd_to_chan",
    "_busy_workers",
    "_cache",
    "_callbacks",
    "_controlled_termination",
    "_decode_result",  # as _get_key_for_task
    "_decoded_cache",
    "_decoders",
    "_encoders",
    "_delivered",
    "_error_callback",
    "_fileno_to_inq",
    "_get_key_for_task",  # of who waits: tests/integration/test_results_subscriptions.py
    "_in_use_connections",
    "_is_mine",
    "_isatty",
    "_local",  # of an app, with the backend of this thread: tests/unit/testing/test_real_parts.py
    "_maxtasksperchild",
    "_message",
    "_meta",  # documented by Django
    "_pending_results",  # as _get_key_for_task
    "_parent_pid",
    "_parser",
    "_payload",  # of a job, and ``_quick_put``: tests/unit/pools/test_pipes.py
    "_persistence",
    "_popen",
    "_putlock",
    "_queue_cycle",
    "_quick_ack",
    "_quick_put",
    "_ready",  # of a hub: tests/acceptance/test_loop_turns.py
    "_semaphore",
    "_semlock",  # and ``_is_mine``, of billiard's locks: tests/unit/pools/test_leaving.py
    "_sock",
    "_stackprotected",
    "_timeout_handler",
    "_waiters",  # of a lock of eventlet: tests/unit/system/test_green_locks.py
    "_wlock",  # of the queue of a child, and ``_writer``: tests/unit/pools/test_pipes.py
    "_worker_handler",
    "_writer",
}

#: Private names that only some versions have: they are asked for by ``getattr`` and ``hasattr``.
SOME_VERSIONS = {
    "_children",  # of a ``gather`` alone, as the next one of a task: testing/test_coroutines.py
    "_chord_part_return_script",
    "_create_waker",
    "_expires",
    "_flush_brpop_reauth",
    "_flush_pending_unsubscribe",
    "_fut_waiter",
    "_pre_columns_clause",
    "_update_brpop_polling",
}

#: Private names of the standard library.
STDLIB = {
    "_adjust_thread_count",  # of an executor, as the next ones: tests/unit/pools/test_threads.py
    "_asdict",
    "_current_exceptions",
    "_current_frames",
    "_exit",
    "_getframe",
    "_idle_semaphore",
    "_max_workers",
    "_run_exitfuncs",
    "_shutdown",
    "_shutdown_lock",
    "_threads",
    "_WorkItem",
    "_work_queue",
    "_value_",  # of an enum, which documents it
}


def find(path: str) -> Any:
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = inspect.getattr_static(found, name)
    return getattr(found, "__func__", found)


@pytest.mark.parametrize("path", NAMES)
def test_pinned(path: str) -> None:
    parameters = NAMES[path]
    found = find(path)
    if parameters is not None:
        actual = inspect.signature(found).parameters
        missing = [name for name in parameters if name not in actual]
        assert not missing, f"{path} has no {missing}: {list(actual)}"


def private_names_used() -> set[str]:
    """Private attributes that the package reads from objects of others."""
    used, own = set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                (own if of_self and isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                own.add(node.value)  # slots, and names given to type() and hasattr()
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(
                celery_graceful.__name__
            ):
                used |= {alias.name for alias in node.names}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    return private - own


def private_names_asked_for() -> set[str]:
    """Private attributes that the package reads by ``getattr``, or asks for, and never sets."""
    asked, own = set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                name = node.args[1]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    asked.add(name.value)
    return {name for name in asked if re.match("_[^_]", name)} - own


def test_nothing_private_is_used_that_is_not_pinned() -> None:
    pinned = {path.rpartition(".")[2].rpartition(":")[2] for path in NAMES}
    used = private_names_used() | (private_names_asked_for() - SOME_VERSIONS)
    assert used - pinned - INSTANCE - STDLIB == set()


def test_the_protection_of_the_stack_of_requests(app: Celery) -> None:
    """A worker installs it, for all tasks of the process; who does so once more takes it away."""
    assert not getattr(Task, "_stackprotected", False)
    trace._install_stack_protection()
    try:
        assert Task._stackprotected is True
    finally:
        trace.reset_worker_optimizations(app)
    assert not hasattr(Task, "_stackprotected")


def test_the_clock_of_a_child_s_starts() -> None:
    """It is that of the main process, which compares it with its own."""
    from billiard.pool import Worker

    assert inspect.signature(Worker.workloop).parameters["now"].default is time.monotonic


def test_where_green_pools_let_in_who_waits_for_room() -> None:
    for pool, room in ((GeventPool(1), "_semaphore"), (GreenPool(1), "sem")):
        semaphore = getattr(pool, room)
        assert semaphore.acquire(blocking=False)
        assert not semaphore.acquire(blocking=False)
        semaphore.release()
        assert semaphore.acquire(blocking=False)
    assert GreenPool(3).size == 3


@pytest.fixture
def app() -> Celery:
    return Celery("pins", broker="memory://", set_as_current=False)


def make_request(app: Celery, **options: Any) -> Request:
    @app.task(name="pins.task", **options)
    def task() -> None: ...

    message = Mock(
        headers={"id": "id", "task": "pins.task", "timelimit": [None, None]},
        properties={},
        delivery_info={},
        payload=([], {}, {}),
        body="[[], {}, {}]",
        content_type="application/json",
        content_encoding="utf-8",
    )
    message.decode.return_value = message.payload
    return Request(message, app=app, task=task, on_reject=message.reject_log_error)


def test_requests_have_what_we_read_of_them(app: Celery) -> None:
    request = make_request(app)
    for name in (
        "_already_cancelled",
        "_already_revoked",
        "_context",
        "acknowledged",
        "connection_errors",
        "id",
        "message",
        "name",
        "on_reject",
        "task",
        "worker_pid",
    ):
        assert hasattr(request, name), name
    assert request._context.id == "id"


def test_the_derived_request_class_overrides_what_we_put_checks_around(app: Celery) -> None:
    from celery.worker.request import create_request_cls

    request = make_request(app)
    cls = create_request_cls(Request, request.task, Mock(), "host", Mock())
    assert {"on_success", "execute_using_pool"} <= set(vars(cls))
    parameters = inspect.signature(vars(cls)["on_success"]).parameters
    assert list(parameters)[:2] == ["self", "failed__retval__runtime"]


def test_failures_come_as_exceptions_with_tracebacks(app: Celery) -> None:
    """``Request.on_failure`` gets an ``ExceptionInfo``; what is inside depends on the pool."""
    try:
        raise LookupError("x")
    except LookupError:
        info = ExceptionInfo()
    exc = info.exception
    assert isinstance(exc.exc if isinstance(exc, ExceptionWithTraceback) else exc, LookupError)


def test_redis_channels_have_what_the_way_back_needs() -> None:
    import redis
    from kombu import Connection
    from kombu.transport.redis import Channel, QoS
    from redis._parsers import _RESP3Parser

    assert Connection("redis://localhost:1/0").transport.driver_type == "redis"

    assert issubclass(Channel.QoS, QoS)
    assert Channel.unacked_key == "unacked"
    assert Channel.unacked_index_key == "unacked_index"
    assert callable(QoS(Mock())._quick_ack)
    assert isinstance(QoS(Mock())._delivered, dict)
    assert Channel._in_poll is False
    connection = redis.Connection()
    assert connection._sock is None
    assert callable(_RESP3Parser.set_invalidation_push_handler)
    # The second argument of _get_message_priority turns the order round.
    channel = Mock(min_priority=0, max_priority=9, default_priority=0)
    message = {"properties": {"priority": 3, "delivery_tag": "1"}}
    assert Channel._get_message_priority(channel, message, reverse=False) == 3
    # What was in the list; its body is not decoded.
    assert Channel.Message(message, channel)._raw is message


def test_a_redis_connection_tells_when_it_is_made(redis_server: RedisServer) -> None:
    import redis

    made = []

    def on_connect(connection: redis.Connection) -> None:
        made.append(connection)
        connection.on_connect()

    pool = redis.ConnectionPool(
        host=LOOPBACK, port=redis_server.port, redis_connect_func=on_connect
    )
    with redis.Redis(connection_pool=pool) as client:
        client.ping()
        assert made[0]._sock.getpeername() == (LOOPBACK, redis_server.port)
        pool.disconnect()
        client.ping()
    assert len(made) == 2
    assert made[0] is made[1]
    assert pool._available_connections == [made[0]]
    assert not pool._in_use_connections


def test_redis_channels_fetch_as_the_transport_counts_on(redis_db: RedisDB) -> None:
    """kombu starts a fetch, polls the connection of ``client``, and reads with the handler."""
    with Connection(redis_db.url) as connection:
        channel = connection.default_channel
        consumer = Consumer(channel, [Queue("pins")], callbacks=[lambda *_: None])
        consumer.consume()
        assert channel.handlers["BRPOP"] == channel._brpop_read
        assert channel._queue_cycle.consume(1) == ["pins"]
        assert list(channel.active_queues) == channel._active_queues == ["pins"]
        assert channel.active_fanout_queues == set()
        channel._queue_cycle.rotate("pins")
        channel.connection.cycle.on_poll_start()
        assert channel._in_poll is channel.client.connection
        assert channel.qos.can_consume_max_estimate() is None
        channel.qos.prefetch_count = 3
        assert channel.qos.can_consume_max_estimate() == 3


def test_chords_are_counted_as_those_that_are_tracked_count_on(redis_db: RedisDB) -> None:
    """What a backend is told, and the keys of its counter; since 5.7 a script knows the parts."""
    app = Celery("pins", broker=redis_db.url, backend=redis_db.backend_url, set_as_current=False)

    @app.task(name="pins.chord", shared=False, ignore_result=True)
    def task(*args: Any) -> None: ...

    backend, sizes, tasks = app.backend, [], []
    backend.set_chord_size = lambda *args: sizes.append(args)
    apply_tasks = group._apply_tasks

    def applying(self: group, todo: Any, *args: Any, **options: Any) -> Any:
        tasks.extend(todo := list(todo))
        assert options["chord"]["options"]["task_id"] == result_id
        return apply_tasks(self, iter(todo), *args, **options)

    result_id = "body"
    with patch.object(group, "_apply_tasks", applying):
        result = chord([task.s(), task.s()], task.s()).apply_async(task_id=result_id)
    group_id = result.parent.id
    assert sizes == [(group_id, 2)]
    assert [(sig.options["task_id"], gid) for sig, _, gid in tasks] == [
        (one.id, group_id) for one in result.parent.results
    ]
    request = Context(id="a", group=group_id, group_index=0, chord=task.s())
    backend.client.set(backend.get_key_for_group(group_id, ".s"), 2)
    backend.on_chord_part_return(request, "SUCCESS", 7)
    (part,) = backend.client.zrange(backend.get_key_for_group(group_id, ".j"), 0, -1)
    assert backend.decode(part)[1:] == ["a", "SUCCESS", 7]
    by_script = tuple(map(int, celery.__version__.split(".")[:2])) >= (5, 7)
    assert hasattr(backend, "_chord_part_return_script") == by_script
    assert backend.client.exists(backend.get_key_for_group(group_id, ".d")) == by_script
    app.close()


def test_a_fetch_that_is_under_way_can_be_found(redis_db: RedisDB) -> None:
    """``_in_poll`` is the redis-py connection of a BRPOP, ``_sock`` its socket."""
    with Connection(redis_db.url) as connection, connection.channel() as channel:
        assert channel._in_poll is False
        consumer = Consumer(channel, [Queue("q")], callbacks=[Mock()])
        consumer.consume()

        def is_fetching() -> Any:
            """Not if Redis was quicker: it answers after a second that there is nothing."""
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.01)
            return channel._in_poll

        wait_until(is_fetching)
        assert channel._in_poll._sock.getsockname()[1] > 0


def test_a_virtual_transport_keeps_callbacks_by_queue() -> None:
    with Connection("memory://") as connection, connection.channel() as channel:
        consumer = Consumer(channel, [Queue("q")], callbacks=[Mock()])
        consumer.consume()
        assert set(consumer._active_tags) == {"q"}
        consumer._active_tags.clear()
        consumer._basic_consume(consumer.queues[0], no_ack=consumer.no_ack, nowait=True)
        assert set(consumer._active_tags) == {"q"}
        assert set(channel.connection._callbacks) == {"q"}


def test_a_pool_of_processes_has_what_the_prefork_adapter_needs() -> None:
    from billiard.pool import RUN, Pool
    from celery.concurrency.prefork import TaskPool

    assert TaskPool.on_stop(Mock(_pool=None)) is None, "one that is gone is left alone"

    pool = Pool(1, soft_timeout=100, timeout=100)
    try:
        (process,) = pool._pool
        assert isinstance(process.pid, int)
        assert process._parent_pid == os.getpid()
        assert callable(process._popen.wait)
        assert process._controlled_termination is False
        assert isinstance(pool._cache, dict)
        assert pool._state == RUN
        assert callable(pool._timeout_handler._trywaitkill)
        assert callable(pool._worker_handler.close)
    finally:
        pool.terminate()
        pool.join()


def test_a_pool_hears_of_more_than_billiard_says() -> None:
    """What a refused job stands on: one more kind of message, and the job's own callback."""
    from billiard.pool import Pool, Worker
    from celery.concurrency.asynpool import WORKER_UP

    from celery_graceful.pools.child import REFUSED

    pool = Pool(1)
    try:
        heard: list[int] = []
        pool._result_handler.state_handlers[REFUSED] = heard.append
        pool._result_handler.on_state_change((REFUSED, (1,)))
        assert heard == [1]
        assert REFUSED != WORKER_UP
        assert pool._maxtasksperchild is None
        assert callable(pool._putlock.release)
        job = pool.apply_async(int, error_callback=heard.append)
        assert job._error_callback == heard.append
    finally:
        pool.terminate()
        pool.join()
    assert "wait_for_job" in Worker.workloop.__code__.co_names
    assert "_fileno_to_inq" in AsynPool.on_process_alive.__code__.co_names


def test_a_flushed_pool_forgets_which_children_are_busy() -> None:
    """What ``GracefulAsynPool.flush`` keeps is kept under these names."""
    assert {"_busy_workers", "_cache"} <= set(AsynPool.flush.__code__.co_names)


def test_a_pool_writes_to_children_as_its_loop_says() -> None:
    """What ``pools/pipes.py`` does in its place, and hands on to it."""
    from inspect import getsource

    source = getsource(AsynPool._create_write_handlers)
    for part in (
        "self.on_poll_start = on_poll_start",
        "hub.consolidate_callback = schedule_writes",
        "self._quick_put = send_job",
        "job._payload = memoryview(header), memoryview(body), body_size",
        "if not job._accepted",
        "job._scheduled_for = fileno_to_inq[ready_fd]",
        "job._write_to = proc",
        "mark_worker_as_busy(ready_fd)",
        "write_stats[proc.index] += 1",
    ):
        assert part in source
    go_on = getattr(AsynPool.ResultHandler, "_finish_partial_read", None)  # since 5.7
    assert go_on is None or "isgenerator" in go_on.__code__.co_names


def test_a_cached_property_is_read_under_its_lock() -> None:
    """``inherited_locks`` puts another one there."""

    class Thing:
        @cached_property
        def made(self) -> bool:
            return Lock.held

    class Lock:
        held = False

        def __enter__(self) -> None:
            Lock.held = True

        def __exit__(self, *exc_info: object) -> None:
            Lock.held = False

    vars(Thing)["made"].lock = Lock()
    assert Thing().made
    assert not Lock.held


def test_an_exit_handler_can_run_the_others_and_leave() -> None:
    """Each once; ``atexit._run_exitfuncs`` is private."""
    code = """
        import atexit, os
        atexit.register(print, "first")
        def last():
            atexit.unregister(last)
            atexit._run_exitfuncs()
            print("left", flush=True)
            os._exit(3)
        atexit.register(print, "second")
        atexit.register(last)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (3, ["second", "first", "left"])


def test_the_tracer_logs_what_it_ignores_with_data(app: Celery) -> None:
    """The filter of ``trace_log`` looks at ``data``."""
    from celery.app.trace import build_tracer
    from celery.exceptions import Ignore

    @app.task(name="pins.ignored")
    def ignored() -> None:
        raise Ignore

    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    trace = logging.getLogger("celery.app.trace")
    before = trace.level
    trace.addHandler(handler)
    trace.setLevel(logging.INFO)
    try:
        tracer = build_tracer("pins.ignored", ignored, app.loader, "host", app=app)
        result = tracer("id", (), {}, {"id": "id", "delivery_info": {}})
    finally:
        trace.removeHandler(handler)
        trace.setLevel(before)
    assert any(getattr(r, "data", {}).get("description") == "ignored" for r in records)
    assert result.info is not None


def test_a_worker_step_may_insert_itself() -> None:
    """``WorkController.steps`` is the list that the blueprint starts from."""
    from celery.worker import WorkController

    assert "self.steps" in inspect.getsource(WorkController.setup_instance)


def test_a_worker_knows_its_terminal_and_its_state_file() -> None:
    """Whether SIGHUP starts anew; what ``--statedb`` asks for."""
    from celery.apps.worker import Worker
    from celery.worker.components import StateDB

    assert "_isatty" in Worker.install_platform_tweaks.__code__.co_names
    assert "_persistence" in StateDB.create.__code__.co_names


def test_a_task_stack_has_threads_of_its_own(app: Celery) -> None:
    """``task.request`` is per thread: what a run reads is its own delivery."""

    @app.task(name="pins.stack")
    def stack() -> None: ...

    stack.push_request(id="mine")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(stack.request.id))
    thread.start()
    thread.join()
    assert (stack.request.id, seen) == ("mine", [None])
    stack.pop_request()


@pytest.mark.parametrize("shared", [False, True])
def test_threads_share_a_result_backend_that_may_be_shared(app: Celery, shared: bool) -> None:
    app.conf.update(result_backend="cache+memory://", result_backend_thread_safe=shared)
    mine = app.backend
    assert vars(app._local).get("backend") is (None if shared else mine)
    assert app._backend_cache is (mine if shared else None)
    theirs: list[Any] = []
    thread = threading.Thread(target=lambda: theirs.append(app.backend))
    thread.start()
    thread.join()
    assert (theirs == [mine]) == shared


def test_what_comes_again_runs_where_no_results_are_kept() -> None:
    """``worker_deduplicate_successful_tasks`` asks for them, and fails where there are none."""
    app = Celery("no results", broker="memory://", set_as_current=False)
    app.conf.update(worker_deduplicate_successful_tasks=True, task_acks_late=True)
    celery_graceful.Graceful(app)

    @app.task(name="comes again", shared=False)
    def comes() -> str:
        return "ran"

    from celery.app.trace import build_tracer

    trace = build_tracer(comes.name, comes, app=app)
    request = {"delivery_info": {"redelivered": True}, "id": "id", "is_eager": False}
    assert trace("id", (), {}, request).retval == "ran"


def test_a_state_that_an_event_carries_is_shown() -> None:
    """Of events whose own state an unknown one outranks."""
    task = CeleryState().Task("id")
    task.event("started", 1.0, 1.0, {})
    task.event("interrupted", 2.0, 2.0, {})
    task.event("started", 3.0, 3.0, {})
    assert task.state == "INTERRUPTED"
    task.event("started", 3.0, 3.0, {"state": "STARTED"})
    assert task.state == "STARTED"


def test_the_class_of_a_decorated_task_knows_its_app(app: Celery) -> None:
    @app.task(shared=False)
    def task() -> None: ...

    made = vars(type(task._get_current_object()))
    assert made["app"] is app
    assert made["_decorated"]

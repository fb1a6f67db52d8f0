"""Tasks that an interruption ends by way of other exceptions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import django
import sqlalchemy as sa
from django.conf import settings
from sqlalchemy.pool import StaticPool

from celery_graceful import Graceful, GracefulTask, ShutdownTimeLimit
from tests.apps import make_app, say

DATABASE = {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DB", ":memory:")}
settings.configure(DATABASES={"default": DATABASE})
django.setup()

from django.db import connection, transaction  # noqa: E402

app = make_app("ended")
app.conf.update(task_default_retry_delay=0, graceful_soft_deadline=8.0, graceful_hard_deadline=24.0)
Graceful(app)

LONG = 60.0


class ServiceError(Exception):
    """Of somebody's client library."""


class ToolError(Exception):
    """Of somebody's wrapper around a program."""

    def __init__(self, exit_code):
        super().__init__("the tool failed")
        self.exit_code = exit_code


def task(**options):
    return app.task(base=GracefulTask, bind=True, **options)


def block(self):
    say("started", self.name.rpartition(".")[2], self.request.retries)
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.05)


def call_service(self):
    try:
        block(self)
    except Exception as exc:
        raise ServiceError("the service is away") from exc


@task()
def wrapped(self):
    call_service(self)


@task(autoretry_for=(ServiceError,), max_retries=3)
def wrapped_autoretry(self):
    call_service(self)


@task(max_retries=3)
def wrapped_retry(self):
    try:
        block(self)
    except Exception:
        raise self.retry(exc=ServiceError("made here"), countdown=0)  # noqa: B904


@task()
def hidden(self):
    try:
        block(self)
    except Exception:
        raise ServiceError("nobody shall see why") from None


class Group(Exception):
    """As `ExceptionGroup`, which Python 3.10 has not."""

    def __init__(self, exceptions):
        self.exceptions = tuple(exceptions)


@task()
def grouped(self):
    try:
        block(self)
    except Exception as exc:
        found = ValueError("wrapped")
        found.__cause__ = exc
    raise Group([LookupError("another"), found])


@task()
def in_atomic(self):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS rows (n)")
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO rows VALUES (1)")
            call_service(self)
    finally:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM rows")
            say("usable in_atomic", cursor.fetchone()[0])


class Blocking(sa.types.TypeDecorator):
    """A limit that is raised in it comes out as SQLAlchemy's `StatementError`."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value, dialect):
        block(value)
        return 1


@task()
def in_statement(self):
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    table = sa.Table("t", sa.MetaData(), sa.Column("n", Blocking))
    table.create(engine)
    try:
        with engine.begin() as tx:
            tx.execute(sa.text("INSERT INTO t VALUES (1)"))
            tx.execute(table.insert().values(n=self))
    except sa.exc.StatementError:
        with engine.begin() as tx:
            say("usable in_statement", tx.execute(sa.text("SELECT count(*) FROM t")).scalar())
        raise


@task()
def swallowing(self):
    """Somebody's retry loop, which keeps the last exception; greenlets must not keep it."""
    try:
        block(self)
    except Exception as exc:
        say("swallowed", type(exc).__name__)
        last = None if "gevent" in sys.modules else exc
    with self.shield():
        pass  # no place for what was raised already
    block(self)
    return last


@task()
def handling(self):
    """Deals with it for longer than half of the time that is left."""
    try:
        block(self)
    except ShutdownTimeLimit:
        try:
            time.sleep(9)
        except ShutdownTimeLimit:
            say("NOT REACHED", "disturbed")
        with self.shield():
            pass
    time.sleep(0.2)
    return "handled"


@task()
def failing(self):
    """Fails by itself while it is told to stop."""
    begin(self)
    self.wait_for_interrupt()
    raise ServiceError("real")


# -- child processes --------------------------------------------------------------------


def begin(self):
    say("started", self.name.rpartition(".")[2], self.request.retries)


@task()
def child(self):
    begin(self)
    subprocess.run(["sleep", str(LONG)], check=True)


@task(autoretry_for=(Exception,), max_retries=3)
def child_autoretry(self):
    begin(self)
    subprocess.check_call(["sleep", str(LONG)])


@task()
def child_of_shell(self):
    """A shell that lives on, and says as what its command ended."""
    begin(self)
    script = f"trap : TERM INT; sleep {LONG}; exit $?"
    subprocess.run(["sh", "-c", script], check=True)


@task()
def child_of_library(self):
    begin(self)
    status = subprocess.run(["sleep", str(LONG)]).returncode
    raise ServiceError("the document was not made") from ToolError(status)


@task()
def child_of_asyncio(self):
    async def run():
        process = await asyncio.create_subprocess_exec("sleep", str(LONG))
        begin(self)
        status = await process.wait()
        raise subprocess.CalledProcessError(status, "sleep")

    asyncio.run(run())


@task()
def child_of_its_own(self):
    """As the docs say."""
    begin(self)
    process = subprocess.Popen(["sleep", str(LONG)], start_new_session=True)
    self.wait_for_interrupt(0)
    say("pid", process.pid)
    # Not the docs': a machine under load may come to the soft limit meanwhile.
    with self.shield(), self.interrupt_callback(lambda _: process.terminate()):
        say("ended", process.wait())
    self.checkpoint()


@task()
def child_that_fails(self):
    """The signal has nothing to do with it."""
    begin(self)
    self.wait_for_interrupt()
    subprocess.run(["sh", "-c", "exit 3"], check=True)


@task()
def child_that_was_ended(self):
    """By somebody else, and nothing stops."""
    process = subprocess.Popen(["sleep", str(LONG)], start_new_session=True)
    threading.Timer(0.1, process.terminate).start()
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, "sleep")


@task()
def forking_meanwhile(self, path):
    """A process that waits as green code does, in which its hub goes on with all that was here."""
    pid = os.fork()
    if not pid:
        try:
            while not os.path.exists(path):
                time.sleep(0.01)
        finally:
            os._exit(3)
    say("forked", pid)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@task()
def nothing(self):
    """Comes and goes."""


@task()
def forking(self):
    """As `multiprocessing` does: whoever ends the process that was forked means that one."""
    ready, written = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(written, b".")
            while True:  # not pause(): of a signal just before it, Python would hear after it
                time.sleep(0.01)
        finally:
            os._exit(3)
    os.read(ready, 1)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    return [os.waitstatus_to_exitcode(status), self.wait_for_interrupt(0.2)]

"""With what a worker starts anew."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import click
import pytest
from celery import Celery, platforms
from celery.bin.celery import celery
from celery.bin.worker import worker

from celery_graceful.system import native
from celery_graceful.worker import restart
from celery_graceful.worker.restart import Restart

ROOT, NOBODY = 0, 65534

CELERY = ["-m", "celery", "-A", "shop"]
AS_ROOT = {"CELERY_WORKER_UID": "nobody"}
#: What Celery takes for nobody to become.
AS_IT_IS = {"CELERY_WORKER_UID": "0", "CELERY_WORKER_GID": "0"}


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one goes on as it is."""
    monkeypatch.setattr(native, "in_main_thread", lambda: False)
    monkeypatch.setattr(restart, "_close_at_exec", lambda: None)
    for name in AS_IT_IS:
        monkeypatch.delenv(name, raising=False)


def executed(
    monkeypatch: pytest.MonkeyPatch, euid: int, *args: str
) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment of the process that takes its place."""
    execve = MagicMock()
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(sys, "orig_argv", ["python", *args])
    anew = Restart()
    anew.ask(True)
    anew.execute()
    program, argv, environ = execve.call_args.args
    assert program == argv[0] == sys.executable
    return argv[1:], {name: environ[name] for name in AS_IT_IS if name in environ}


@pytest.mark.parametrize(
    "options",
    [
        ["--uid", "nobody", "--gid", "nogroup"],
        ["--uid=nobody", "--gid=nogroup"],
        ["--gid", "worker"],
        [],
    ],
)
def test_who_is_not_root_any_more_becomes_nobody_else(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = [*CELERY, "worker", "-c", "2", *options, "-n", "w@h"]
    args, environ = executed(monkeypatch, NOBODY, *started)
    assert args == [*CELERY, "worker", "-c", "2", "-n", "w@h"]
    assert environ == AS_IT_IS


def test_root_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_WORKER_UID", "nobody")
    started = [*CELERY, "worker", "--uid=nobody", "--gid", "nogroup"]
    assert executed(monkeypatch, ROOT, *started) == (started, AS_ROOT)


@pytest.mark.parametrize(
    "started",
    [
        ["-m", "celery", "--app=shop", "worker", "--uids=1", "-n", "--uid-of@h"],
        ["start.py", "--uid", "7", "--gid=8"],  # a script that starts a worker
    ],
)
def test_what_is_none_of_these_options_stays(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, _ = executed(monkeypatch, NOBODY, *started)
    assert args == started


def test_what_was_for_celery_is_not_for_what_tasks_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AS_IT_IS:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv(restart._STARTED_ANEW, "1")
    monkeypatch.setattr(restart, "_reap", lambda: None)
    Restart()
    assert not os.environ.keys() & AS_IT_IS.keys()


def test_to_celery_a_0_is_nobody_to_become(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the environment says stands above the settings."""
    for name, value in AS_IT_IS.items():
        monkeypatch.setenv(name, value)
    app = Celery("shop", set_as_current=False)
    app.conf.update(worker_uid="nobody", worker_gid="nogroup")
    program = click.Context(
        celery, info_name="celery", obj=SimpleNamespace(app=app), auto_envvar_prefix="CELERY"
    )
    given = worker.make_context("worker", [], parent=program).params
    assert (given["uid"], given["gid"]) == ("0", "0")
    for name in ("setuid", "setgid", "initgroups"):
        monkeypatch.setattr(platforms, name, MagicMock(side_effect=PermissionError))
    platforms.maybe_drop_privileges(uid=given["uid"], gid=given["gid"])

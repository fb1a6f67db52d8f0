"""The end of a process that cannot start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from celery_graceful.system import fatal
from tests.support.logs import own_records


def test_it_is_said_as_fatal_and_once(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fatal.end("100 % wrong")
    assert ended.value.code == 1  # a text would be printed, too
    said = [(record.levelname, record.getMessage()) for record in own_records(caplog)]
    assert said == [("CRITICAL", "100 % wrong")]
    assert not capsys.readouterr().err


def test_where_the_app_has_switched_the_log_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fatal.logger, "disabled", True)  # a dictConfig with its defaults
    with pytest.raises(SystemExit) as ended:
        fatal.end(ValueError("wrong"))
    assert ended.value.code == "wrong"


def test_a_process_without_a_log() -> None:
    code = "from celery_graceful.system import fatal; fatal.end('wrong')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "wrong\n")

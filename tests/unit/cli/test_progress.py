"""What is said while somebody waits."""

from __future__ import annotations

import io
import re

import pytest

from celery_graceful.cli import progress
from celery_graceful.cli.progress import EMPTY, Working
from tests.support.workers import wait_until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_is_said_and_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    stream = Terminal()
    with Working("looks", stream) as working:
        wait_until(stream.getvalue, "it says so")
        working.echo("found one")
    assert re.match(rf"{re.escape(EMPTY)}looks \.\.\. \d s", stream.getvalue())
    assert stream.getvalue().endswith(EMPTY)
    assert capsys.readouterr().out == "found one\n"


def test_nothing_is_said_of_what_is_quick_nor_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "QUIET", 60.0)
    stream = Terminal()
    with Working("looks", stream) as working:
        working.echo("")
    assert not stream.getvalue()
    monkeypatch.setattr(progress, "QUIET", 0.0)
    plain = io.StringIO()
    with Working("looks", plain):
        pass
    assert not plain.getvalue()


def test_a_terminal_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    stream = Terminal()
    stream.close()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    with Working("looks", stream) as working:
        wait_until(working._over.is_set, "it has given up")

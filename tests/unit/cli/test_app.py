"""The app that a command is about."""

from __future__ import annotations

import sys

import click
import pytest
from celery import Celery
from celery.bin.celery import CLIContext, celery

from celery_graceful.cli.app import command_of


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("-A shop graceful status", "shop"),
        ("-Ashop graceful status", "shop"),
        ("-qAshop graceful status", "shop"),
        ("--app shop graceful status", "shop"),
        ("--app=shop.main:app graceful status", "shop.main:app"),
        ("-A first -A second graceful status", "second"),
        ("--workdir -A graceful status", "of_the_context"),
        ("graceful status -A no", "of_the_context"),
        ("-n 2 --of another.program", "of_the_context"),
        ("-A", "of_the_context"),
    ],
)
def test_other_commands_begin_as_this_one(
    line: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Celery("of_the_context", set_as_current=False)
    app._plain_create_task_cls = None  # as Graceful does
    ctx = click.Context(celery, obj=CLIContext(app=app, no_color=True, workdir=None))
    monkeypatch.setattr(sys, "argv", ["celery", *line.split()])
    assert command_of(ctx) == f"celery -A {named} graceful "

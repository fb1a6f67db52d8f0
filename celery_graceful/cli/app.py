"""The app that a command is about."""

from __future__ import annotations

import sys
from typing import Any

import click

__all__ = ["app_of", "command_of"]


def app_of(ctx: click.Context) -> Any:
    """The app that ``celery -A`` names.

    Raises:
        click.UsageError: None was named, or it is not graceful.
    """
    app = ctx.obj.app
    if not hasattr(app, "_plain_create_task_cls"):
        given = ctx.find_root().params.get("app")
        raise click.UsageError(
            "no app was given: celery -A <your app> graceful ..."
            if given is None
            else f"{app!r} is not graceful: where it is made, say celery_graceful.Graceful(app)"
        )
    return app


def command_of(ctx: click.Context) -> str:
    """How a command line begins that does something else with the same app."""
    for at, word in enumerate(sys.argv[:-1]):
        if word in ("-A", "--app"):
            return f"celery -A {sys.argv[at + 1]} graceful "
        if word.startswith("--app="):
            return f"celery -A {word[6:]} graceful "
    return f"celery -A {app_of(ctx).main or 'APP'} graceful "

"""The app that a command is about."""

from __future__ import annotations

import shlex
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
    root = ctx.find_root()
    try:
        given, _, _ = root.command.make_parser(root).parse_args(sys.argv[1:])
    except click.UsageError:  # another program's line, which runs commands of ours
        given = {}
    name = given.get("app") or app_of(ctx).main or "APP"
    return f"celery -A {shlex.quote(name)} graceful "

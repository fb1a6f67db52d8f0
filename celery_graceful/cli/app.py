"""The app that a command is about."""

from __future__ import annotations

import shlex
import sys
from contextlib import redirect_stdout
from typing import Any

import click

from celery_graceful.cli.output import folded, shown
from celery_graceful.operations import Operations
from celery_graceful.system.describe import describe

__all__ = ["app_of", "command_of", "operations_of"]

#: Of a context's ``meta``: the app's modules were imported, or cannot be.
_LOADED = f"{__name__}.loaded"


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


def operations_of(ctx: click.Context, **options: Any) -> Operations:
    """What there is to do with the app, as its workers know it: with its tasks and its backend.

    Args:
        ctx: Of the command.
        options: Of ``Operations``.

    Raises:
        click.UsageError: None was named, or it is not graceful.
    """
    app = app_of(ctx)
    if not ctx.meta.get(_LOADED):
        ctx.meta[_LOADED] = True
        _load(app)
    return Operations(app, **options)


def _load(app: Any) -> None:
    """Import the modules with the tasks, for which Celery sets up Django; go on if that fails."""
    try:
        with redirect_stdout(sys.stderr):  # what modules print is no part of a JSON document
            app.loader.import_default_modules()
    except Exception as exc:  # users' code may raise anything
        why = f"the app's modules cannot be imported, so not all it has is known: {describe(exc)}"
        click.echo("\n".join(folded(shown(why), stream=sys.stderr)), err=True)


def command_of(ctx: click.Context) -> str:
    """How a command line begins that does something else with the same app."""
    root = ctx.find_root()
    try:
        given, _, _ = root.command.make_parser(root).parse_args(sys.argv[1:])
    except click.UsageError:  # another program's line, which runs commands of ours
        given = {}
    name = given.get("app") or app_of(ctx).main or "APP"
    return f"celery -A {shlex.quote(name)} graceful "

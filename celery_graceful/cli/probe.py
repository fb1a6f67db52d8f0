"""``celery graceful probe``: what a worker on this machine says of itself in its file."""

from __future__ import annotations

import os
from dataclasses import dataclass

import click
from celery.utils.nodenames import default_nodename, node_format

import celery_graceful_probe
from celery_graceful.cli.app import app_of
from celery_graceful.cli.output import AWAY, JSON, Command, say_json
from celery_graceful.cli.writing import write_nowhere
from celery_graceful.operations.records import Record
from celery_graceful.settings import Settings

__all__ = ["probe"]


@dataclass(frozen=True)
class Probed(Record):
    """What a worker says of itself.

    Attributes:
        question: ``live`` or ``ready``.
        ok: The answer.
        said: Why.
    """

    question: str
    ok: bool
    said: str


@click.command(cls=Command)
@click.argument("question", type=click.Choice(["live", "ready"]))
@click.option("--file", "path", help="The worker's graceful_probe_file, its %p filled in.")
@click.option("-n", "--hostname", help="The worker's node, where the app names the file.")
@JSON
@click.pass_context
def probe(
    ctx: click.Context, question: str, path: str | None, hostname: str | None, as_json: bool
) -> int:
    """Whether the worker on this machine is live, or ready.

    Asks nobody: it looks at a file. Celery takes a while to come to that; for probes that are made
    every few seconds there is python -m celery_graceful_probe.
    """
    path = path or _file_of(ctx)
    node = default_nodename(hostname)
    file = node_format(path, node)
    status, said = celery_graceful_probe.look(question, file)
    if status == AWAY and hostname is None and file != path:
        said = f"{said}; that is the file of {node}: -n names another worker"
    if as_json:
        say_json(Probed(question, status == celery_graceful_probe.YES, said).to_dict())
    else:
        try:
            click.echo(said)
        except OSError:  # whether it can be written is not what was asked
            write_nowhere()
    return status


def _file_of(ctx: click.Context) -> str:
    named = os.environ.get(celery_graceful_probe.ENVIRON)
    if named and ctx.find_root().params.get("app") is None:
        return named
    path = Settings.from_conf(app_of(ctx).conf).probe_file or named
    if not path:
        raise click.UsageError(
            f"the app names no graceful_probe_file, and ${celery_graceful_probe.ENVIRON} is not set"
        )
    return path

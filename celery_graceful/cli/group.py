"""``celery graceful``: what there is to do from a shell.

Whatever begins with ``celery``, each worker too, imports this: a command is imported when it is
called.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

from celery_graceful.cli.writing import Group

__all__ = ["graceful"]


class _Place(NamedTuple):
    """Where a command is, and how what it says of itself begins."""

    module: str
    help: str


_COMMANDS = {
    "batches": _Place("batches", "Batches, what they wait for, and four remedies."),
    "chaos": _Place("chaos", "Break something on purpose, and see what becomes of it."),
    "checkpoints": _Place("checkpoints", "What tasks have saved, to go on from."),
    "claims": _Place("claims", "Messages that workers hold, or one WORKER."),
    "deploy": _Place("history", "Deploys, in the history of the fleet."),
    "doctor": _Place("doctor", "Check app and environment, without starting a worker."),
    "history": _Place("history", "What was unusual in a task's life, or in that of all."),
    "probe": _Place("probe", "Whether the worker on this machine is live, or ready."),
    "quarantine": _Place("quarantine", "Messages that are not run again: why."),
    "quiet": _Place("workers", "Have WORKER fetch nothing more, or all workers."),
    "rescue": _Place("rescue", "Give the claims of dead workers back to their queues."),
    "resume": _Place("workers", "Have WORKER, or all workers, that are quiet fetch again."),
    "status": _Place("status", "All workers: phase, seconds left, what runs."),
    "stop": _Place("workers", "Drain WORKER."),
    "why": _Place("why", "Where a task is, and what it waits for."),
}


class _Commands(Group):
    """Lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"celery_graceful.cli.{_COMMANDS[cmd_name].module}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in _COMMANDS.items()])


@click.group(cls=_Commands)
def graceful() -> None:
    """Graceful workers: what they hold, and what they keep away."""

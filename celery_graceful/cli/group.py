"""``celery graceful``: what there is to do from a shell."""

from __future__ import annotations

import click

from celery_graceful.cli.batches import batches
from celery_graceful.cli.chaos import chaos
from celery_graceful.cli.checkpoints import checkpoints
from celery_graceful.cli.claims import claims
from celery_graceful.cli.doctor import doctor
from celery_graceful.cli.history import deploy, history
from celery_graceful.cli.probe import probe
from celery_graceful.cli.quarantine import quarantine
from celery_graceful.cli.rescue import rescue
from celery_graceful.cli.status import status
from celery_graceful.cli.why import why
from celery_graceful.cli.workers import quiet, resume, stop

__all__ = ["graceful"]


@click.group()
def graceful() -> None:
    """Graceful workers: what they hold, and what they keep away."""


graceful.add_command(batches)
graceful.add_command(chaos)
graceful.add_command(doctor)
graceful.add_command(checkpoints)
graceful.add_command(claims)
graceful.add_command(deploy)
graceful.add_command(history)
graceful.add_command(quarantine)
graceful.add_command(probe)
graceful.add_command(quiet)
graceful.add_command(resume)
graceful.add_command(stop)
graceful.add_command(rescue)
graceful.add_command(status)
graceful.add_command(why)

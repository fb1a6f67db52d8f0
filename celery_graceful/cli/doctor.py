"""``celery graceful doctor``: what is wrong with app and environment, before a worker finds out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from celery_graceful.cli.app import app_of
from celery_graceful.cli.output import (
    AWAY,
    FINE,
    FOUND,
    JSON,
    Command,
    Seconds,
    paint,
    say_json,
    shown,
)
from celery_graceful.cli.progress import Working
from celery_graceful.doctor.examination import Examination
from celery_graceful.doctor.findings import Finding, Severity
from celery_graceful.doctor.report import Report, examine

__all__ = ["doctor"]

#: Columns that a line may take.
WIDTH = 80

COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


@click.command(cls=Command)
@JSON
@click.option(
    "--prestop",
    type=Seconds(min=0),
    default=0.0,
    metavar="SECONDS",
    help="What a hook takes before SIGTERM is sent, such as preStop on Kubernetes.",
)
@click.option(
    "--dockerfile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the worker's image is built from: whether a stop signal reaches it.",
)
@click.option("--command", metavar="LINE", help="What the platform starts, in its place.")
@click.pass_context
def doctor(
    ctx: click.Context,
    as_json: bool,
    prestop: float,
    dockerfile: Path | None,
    command: str | None,
) -> int:
    """Check app and environment, without starting a worker.

    Each finding has a section in docs/doctor.md. Exit status: 1 if there are errors, else 3 if
    a server that has to be asked does not answer, or a check fails, else 0.
    """
    given = Examination(app_of(ctx), prestop=prestop, dockerfile=dockerfile, command=command)
    with Working("examines app and servers"):
        report = examine(given)
    if as_json:
        say_json(report.to_dict())
    else:
        for line in _lines(report):
            click.echo(line)
    unsure = report.misses_a_server or report.has_failed
    return FOUND if report.has_errors else AWAY if unsure else FINE


def _lines(report: Report) -> Iterator[str]:
    d = report.deadlines
    if d is not None:
        yield from _wrapped(
            f"Grace period: {d.grace:g} s ({shown(d.source)}); soft deadline {d.soft:.3g} s, "
            f"hard deadline {d.hard:.3g} s after the signal."
        )
        yield ""
    for finding in report.findings:
        yield from _of(finding)
        yield ""
    for what, why in report.unchecked.items():
        yield from _wrapped(shown(f"could not be checked: {what}: {why}"))
    if report.unchecked:
        yield ""
    yield _summary(report)


def _of(finding: Finding) -> Iterator[str]:
    finding = shown(finding)
    head = f"{finding.code} {finding.severity.value}"
    first, *others = _wrapped(f"{head}: {finding.thing} = {finding.value!r}")
    yield first.replace(head, paint(head, COLOURS[finding.severity]), 1)
    yield from others
    yield from _wrapped(f"why:  {finding.why}", "  ", "        ")
    yield from _wrapped(f"mend: {finding.mend}", "  ", "        ")
    yield f"  see:  {finding.link}"


def _wrapped(text: str, first: str = "", others: str = "  ") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(report: Report) -> str:
    counts = report.to_dict()["counts"]
    named = [
        f"{counts[s.value]} {s.value}{'s' * (counts[s.value] != 1)}"
        for s in Severity
        if counts[s.value]
    ]
    said = ", ".join(named) or "Nothing was found"
    if report.misses_a_server:
        return f"{said}; a server does not answer."
    return f"{said}; not all could be checked." if report.unchecked else f"{said}."

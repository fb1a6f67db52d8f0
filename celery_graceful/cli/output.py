"""What commands print, and what they exit with.

==========  =======================================================================
``FINE``    0: nothing is wrong
``FOUND``   1: something was found that somebody should look at, or what was named is not there
``USAGE``   2: the command line cannot be used
``AWAY``    3: what has to be asked cannot be reached, or there is nothing to ask
==========  =======================================================================

What somebody has sent, such as the name of a task, goes through ``shown`` to a terminal.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TextIO, TypeVar, cast

import click
from celery.bin.base import CeleryCommand
from wcwidth import wcwidth

from celery_graceful.cli.writing import Helpful, writing
from celery_graceful.exceptions import SettingsError
from celery_graceful.messages.bounded_connections import BrokerAway
from celery_graceful.operations.operations import UnknownWorker
from celery_graceful.operations.records import Done
from celery_graceful.store.store import StoreAway

__all__ = [
    "AWAY",
    "FINE",
    "FOUND",
    "JSON",
    "USAGE",
    "YES",
    "CannotReach",
    "Command",
    "Seconds",
    "ask",
    "counted",
    "duration",
    "folded",
    "frame",
    "is_dumb",
    "moment",
    "not_empty",
    "paint",
    "say_done",
    "say_json",
    "shown",
    "table",
    "terminal_width",
]

T = TypeVar("T")

FINE, FOUND, USAGE, AWAY = 0, 1, 2, 3

#: As a shell says it of who died of SIGINT.
_INTERRUPTED = 130

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")

#: Of a terminal; ``click.echo`` leaves them out elsewhere.
_HOME, _REST_OF_LINE, _REST_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"

#: In the place of what was cut off; and columns that are left at least.
_CUT, _LEAST = "...", 12

#: What click begins a message with.
_ERROR = "Error: "

#: Rows that what comes first keeps, however much stands below it.
_LEAST_ABOVE = 4


class Refused(click.ClickException):
    """Nothing was done, as somebody has said, or nobody."""

    exit_code = USAGE


class CannotReach(click.ClickException):
    """What has to be asked does not answer, or there is nothing to ask."""

    exit_code = AWAY


class Command(Helpful, CeleryCommand):
    """A command that returns what it exits with; nothing stands for ``FINE``.

    A store or a broker that is away is one line, and ``AWAY``. Who closes the pipe that it writes
    to, or types Ctrl-C, hears nothing more of it.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, and exit."""
        # What cannot be reached is said below, in words for who has asked.
        logging.getLogger("celery").addHandler(logging.NullHandler())
        try:
            with writing():
                status = super().invoke(ctx)
                sys.stdout.flush()
        except (StoreAway, BrokerAway) as exc:
            raise CannotReach(_error(str(exc))) from exc
        except UnknownWorker as exc:
            raise click.ClickException(_error(str(exc))) from exc
        except SettingsError as exc:
            raise click.UsageError(str(exc)) from exc
        except click.ClickException as exc:
            vars(exc)["message"] = "\n".join(map(_error, exc.message.splitlines()))
            raise
        except KeyboardInterrupt:
            status = _INTERRUPTED
        ctx.exit(status or FINE)


def _error(text: str) -> str:
    """A line behind click's ``Error: ``, in as many as it takes."""
    return "\n".join(folded(_ERROR + shown(text), stream=sys.stderr)).removeprefix(_ERROR)


def ask(question: str, yes: bool) -> None:
    """Ask before something that cannot be taken back.

    Raises:
        Refused: The answer was no, or nobody is there to give one.
        KeyboardInterrupt: It was Ctrl-C.
    """
    try:
        if yes or click.confirm(shown(question), err=True):
            return
    except click.Abort as exc:
        click.echo(err=True)
        if isinstance(exc.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise Refused("nothing was done; --yes does not ask") from None
    raise Refused("nothing was done")


class Seconds(click.FloatRange):
    """A number that a sum of seconds can be made with."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):  # no range keeps NaN out
            self.fail(f"{value} is no finite number of seconds.", param, ctx)
        return seconds


def not_empty(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """An argument is text; for ``click``'s ``callback``."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty", ctx, param)
    return value


def shown(value: T) -> T:
    """As a terminal may get it: what is no letter, such as ESC or a newline, is written as Python
    would. Names, ids and reasons are whatever somebody has sent.

    Args:
        value: Text, or a record, list or dict with text anywhere in it.
    """
    found: Any = value
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        found = "".join(c if c.isprintable() else _escaped(c) for c in value)
    elif isinstance(value, Mapping):
        found = {shown(key): shown(item) for key, item in value.items()}
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        found = type(value)(map(shown, value))
    elif is_dataclass(value) and not isinstance(value, type):
        found = copy(value)
        for field in fields(found):
            object.__setattr__(found, field.name, shown(getattr(found, field.name)))
    return cast("T", found)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def counted(number: int, one: str, many: str = "") -> str:
    """So many of them, as English has it."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def say_json(document: Any) -> None:
    """Print a document: what ``to_dict()`` of a record says."""
    click.echo(json.dumps(document, indent=2, default=str))


def say_done(done: Iterable[Done], as_json: bool, *, error: str = " ") -> int:
    """Print what became of each, as it comes, or one document; what to exit with.

    Args:
        done: What became of them.
        as_json: As a document.
        error: Between an id and why nothing was done.
    """
    said = []
    for one in done:
        said.append(one)
        if not as_json:
            click.echo(shown(f"{one.id}{' ' if one.ok else error}{one.said}"), err=not one.ok)
    if as_json:
        say_json([one.to_dict() for one in said])
    return FINE if all(one.ok for one in said) else FOUND


def paint(text: str, colour: str) -> str:
    """In that colour, on a terminal that has some; ``click.echo`` leaves it out elsewhere."""
    return click.style(text, fg=colour) if _has_colour() else text


def _has_colour() -> bool:
    context = click.get_current_context(silent=True)
    plain = getattr(context.obj if context else None, "no_color", False)
    return not (plain or os.environ.get("NO_COLOR") or is_dumb())


def is_dumb() -> bool:
    """Whether the terminal knows no escape codes."""
    return os.environ.get("TERM") == "dumb"


def terminal_width() -> int:
    """Columns that there are; 80 where nobody says."""
    return shutil.get_terminal_size((80, 24)).columns


def frame(lines: Sequence[str], below: Sequence[str] = ()) -> str:
    """What a terminal shows from now on, in the place of what it has shown.

    Args:
        lines: Of it.
        below: What follows, and is left out last where there is no room for all.
    """
    lines, below = ([one for line in part for one in line.split("\n")] for part in (lines, below))
    if sys.stdout.isatty():
        size = shutil.get_terminal_size((80, 24))
        room = size.lines - 1  # the cursor stands below the last: else the first is pushed out
        above = min(_rows(lines, size.columns), _LEAST_ABOVE)
        below = _fitting(below, room - above, size.columns)
        lines = _fitting(lines, room - _rows(below, size.columns), size.columns)
    lines = [*lines, *below]
    if is_dumb():
        return "\n".join([*lines, ""])
    return _HOME + "\n".join(line + _REST_OF_LINE for line in lines) + _REST_BELOW


def _rows(lines: Sequence[str], width: int) -> int:
    """That a terminal needs for them: it goes on with a long line in the next row."""
    return sum(max(1, -(-_columns(line) // width)) for line in lines)


def _fitting(lines: Sequence[str], room: int, width: int) -> Sequence[str]:
    """The first of them, and how many there are more."""
    if _rows(lines, width) <= room:
        return lines
    kept = len(lines) - 1
    while kept and _rows(lines[:kept], width) >= room:
        kept -= 1
    return [*lines[:kept], f"and {counted(len(lines) - kept, 'line')} more"]


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    right: Sequence[int] = (),
    elastic: Sequence[int] = (0,),
) -> Iterator[str]:
    """Lines of a table: of rich on a terminal, where that is installed; the same in plain text.

    Args:
        head: Of the columns.
        rows: Their cells; colours take no room.
        width: Columns of the terminal.
        right: Which columns are flush right.
        elastic: The columns that are cut where the table would be too wide, one after the other.
    """
    if sys.stdout.isatty():
        if _least(head, rows, elastic) > width:
            return stacked(head, rows, width)
        try:  # here: it takes a while, and pipes get none of it
            from celery_graceful.cli.rich_table import lines_of
        except ImportError:
            pass
        else:
            colour = _has_colour()
            return lines_of(head, rows, width, right=right, elastic=elastic, colour=colour)
    return plain_table(head, rows, width, right=right, elastic=elastic)


def plain_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    right: Sequence[int] = (),
    elastic: Sequence[int] = (0,),
) -> Iterator[str]:
    """As ``table``, without rich."""
    lines = [head, *rows]
    widths = [max(_columns(line[at]) for line in lines) for at in range(len(head))]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    for at in elastic:
        if over > 0:
            left = max(len(head[at]), _LEAST, widths[at] - over)
            over -= widths[at] - left
            widths[at] = left
    for line in lines:
        cells = []
        for at, cell in enumerate(line):
            if _columns(cell) > widths[at]:
                cell = _cut(click.unstyle(cell), widths[at] - len(_CUT)) + _CUT
            blank = " " * (widths[at] - _columns(cell))
            cells.append(blank + cell if at in right else cell + blank)
        yield "  ".join(cells).rstrip()


def _least(head: Sequence[str], rows: Sequence[Sequence[str]], elastic: Sequence[int]) -> int:
    """Columns that a table takes at the least."""
    widths = [max(_columns(line[at]) for line in [head, *rows]) for at in range(len(head))]
    for at in elastic:
        widths[at] = min(widths[at], max(len(head[at]), _LEAST))
    return sum(widths) + 2 * (len(widths) - 1)


def stacked(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """As ``table``, where it is too wide for the terminal: a few lines a row, joined."""
    yield head[0]
    for first, *others in rows:
        indent = " " * (len(first) - len(first.lstrip()) + 2)
        lines, line = [first], indent
        for name, cell in zip(head[1:], others, strict=True):
            said = f"{name.lower()} {cell}".strip()
            if line != indent and _columns(line) + 2 + _columns(said) > width:
                lines.append(line)
                line = indent
            line += said if line == indent else f"  {said}"
        yield "\n".join([*lines, line])


def _columns(text: str) -> int:
    """That a terminal needs for it: two for a wide letter, none for an accent on one."""
    return sum(max(0, wcwidth(letter)) for letter in click.unstyle(text))


def _cut(text: str, columns: int) -> str:
    while _columns(text) > columns:
        text = text[:-1]
    return text


def folded(text: str, width: int | None = None, *, stream: TextIO | None = None) -> list[str]:
    """A line, in as many as it takes; elsewhere than on a terminal one, for who cuts it up.

    Args:
        text: The line.
        width: Columns that there are, in place of those of a terminal.
        stream: Where it goes; without: standard output.
    """
    if width is None:
        if not (stream or sys.stdout).isatty():
            return [text]
        width = terminal_width()
    indent = " " * (len(text) - len(text.lstrip())) + "    "
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def duration(seconds: float | None) -> str:
    """For people, as short as it can be; ``-`` for none."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, rest, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            more = whole % size // rest
            return f"{whole // size} {unit}" + (f" {more} {part}" if more else "")
    return f"{whole // 60} min" if whole >= 120 else f"{whole} s"


def moment(at: dt.datetime) -> str:
    """A time, as it stands in all that is printed: UTC."""
    return at.astimezone(dt.timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")

"""What commands print, and what they exit with."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner

from celery_graceful.cli import output
from celery_graceful.exceptions import SettingsError
from celery_graceful.messages.bounded_connections import BrokerAway
from celery_graceful.operations.records import Claim
from celery_graceful.store.store import StoreAway


def raising(exc: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise exc

    return run


@pytest.mark.parametrize(
    ("run", "status", "said"),
    [
        (lambda: None, output.FINE, ""),
        (lambda: output.FOUND, output.FOUND, ""),
        (raising(StoreAway("the broker: refused")), output.AWAY, "Error: the broker: refused\n"),
        (raising(BrokerAway("amqp: refused")), output.AWAY, "Error: amqp: refused\n"),
        (raising(KeyboardInterrupt()), 130, ""),
        (raising(SettingsError("graceful_store", 1, "a URL")), output.USAGE, "a URL.\n"),
        (raising(click.UsageError("name one")), output.USAGE, "Error: name one\n"),
    ],
)
def test_what_it_exits_with(run: Callable[[], Any], status: int, said: str) -> None:
    ended = CliRunner().invoke(output.Command("c", callback=run), [])
    assert ended.exit_code == status
    assert ended.output.endswith(said)
    assert said or not ended.output


def test_a_closed_pipe_is_no_news() -> None:
    program = (
        "from celery_graceful.cli.output import Command\n"
        "import click\n"
        "def run():\n    [click.echo('x' * 99) for _ in range(9999)]\n"
        "Command('c', callback=run)([])"
    )
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


PRINTS = (
    "from celery_graceful.cli.output import Command as C; C('c', callback=lambda: print('x'))([])"
)
HELPS = "from celery_graceful.cli.group import graceful; graceful(%r)"


@pytest.mark.parametrize(
    ("to", "why"),
    [("/dev/full", b"No space left on device"), (None, b"standard output is closed")],
)
@pytest.mark.parametrize(
    "program",
    [
        PRINTS,
        *(HELPS % [*of, "--help"] for of in ([], ["status"], ["batches"], ["batches", "list"])),
    ],
)
def test_what_cannot_be_written_is_one_line(program: str, to: str | None, why: bytes) -> None:
    end = f'>"{to}"' if to else ">&-"
    ended = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {end}', sys.executable, program],
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert ended.stderr == b"Error: what there is to say cannot be written: %s\n" % why
    assert ended.returncode == 74


HOSTILE = "a\x1b[31mb\nc\u202ed\x9be\udc80"


def test_a_terminal_gets_letters_only() -> None:
    shown = "a\\x1b[31mb\\nc\\u202ed\\x9be\\udc80"
    assert output.shown(HOSTILE) == shown
    claim = Claim("w", True, 1, "id", HOSTILE, HOSTILE, False)
    found = output.shown([{HOSTILE: claim}])[0][shown]
    assert (found.task, found.id, found.worker_lives) == (shown, "id", True)
    assert HOSTILE in (claim.task, claim.queue)  # JSON is exact
    assert output.shown("世界 é \\") == "世界 é \\"


def test_nothing_is_painted_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert output.paint("red", "red") == "red"
    assert output.frame(["one", "two"]) == "one\ntwo\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b" not in "".join(output.table(HEAD, [["w", "running", "3"]], 40))


@pytest.mark.parametrize(
    ("yes", "typed", "status"),
    [(True, "", 0), (False, "y\n", 0), (False, "n\n", 2), (False, "", 2)],
)
def test_it_asks_before_what_cannot_be_taken_back(yes: bool, typed: str, status: int) -> None:
    command = output.Command("c", callback=lambda: output.ask("Drop it?", yes))
    ended = CliRunner().invoke(command, [], input=typed)
    assert ended.exit_code == status
    assert ("nothing was done" in ended.output) == bool(status)


def test_a_table_is_cut_where_it_may_be() -> None:
    rows = [
        ["w1@" + "host" * 10, "running", "3"],
        ["w2@host", click.style("quiet", fg="red"), "12"],
    ]
    lines = list(output.table(["WORKER", "PHASE", "CLAIMS"], rows, 40, right=[2]))
    assert [click.unstyle(line) for line in lines] == [
        "WORKER                   PHASE    CLAIMS",
        "w1@hosthosthosthosth...  running       3",
        "w2@host                  quiet        12",
    ]
    wide = list(output.table(["WORKER", "PHASE", "CLAIMS"], rows, 200, right=[2]))
    assert rows[0][0] in wide[1]


def test_wide_letters_stay_in_line() -> None:
    """One that a terminal shows in two columns, and an accent that takes none."""
    rows = [["世界" * 9, "1"], ["gru\N{COMBINING DIAERESIS}n", "2"]]
    assert list(output.plain_table(["TASK", "N"], rows, 20, right=[1])) == [
        "TASK               N",
        "世界世界世界世...  1",
        "gru\N{COMBINING DIAERESIS}n               2",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"),
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (119, "119 s"),
        (150, "2 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_durations_are_short(seconds: float | None, said: str) -> None:
    assert output.duration(seconds) == said


def test_times_are_utc() -> None:
    at = dt.datetime(2025, 1, 2, 3, 4, 5, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert output.moment(at) == "2025-01-02 02:04:05Z"


def test_colours_are_left_out_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.paint("red", "red") != "red"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("red", "red") == "red"


ROWS = [
    ["w1@" + "host" * 10, click.style("running", fg="green"), "3"],
    ["w2@host", click.style("quiet", fg="red"), "12"],
]
HEAD = ["WORKER", "PHASE", "CLAIMS"]


@pytest.mark.parametrize("with_rich", [True, False])
def test_a_narrow_terminal_gets_all_of_it(monkeypatch: pytest.MonkeyPatch, with_rich: bool) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    if not with_rich:
        monkeypatch.setitem(sys.modules, "celery_graceful.cli.rich_table", None)
    head = ["WORKER", "PHASE", "SINCE", "LEFT", "RUNS", "CLAIMS", "LAG"]
    row = ["w1@" + "host" * 5, "running", "2 h 5 min", "-", "2/8", "12", "0.0 s"]
    lines = list(output.table(head, [row], 40, right=(3, 4, 5, 6)))
    assert lines == [
        "WORKER",
        "w1@hosthosthosthosthost\n"
        "  phase running  since 2 h 5 min  left -\n"
        "  runs 2/8  claims 12  lag 0.0 s",
    ]
    assert all(len(line) <= 40 for line in "\n".join(lines).split("\n"))
    assert output.frame(lines).count("\n") == 3
    assert len(list(output.table(head, [row], 80))[1]) <= 80


@pytest.mark.parametrize("width", [40, 80, 200])
def test_rich_says_the_same(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = list(output.table(HEAD, ROWS, width, right=[2]))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    rich = list(output.table(HEAD, ROWS, width, right=[2]))
    assert rich[0].startswith("\x1b[1mWORKER")
    assert "\x1b[31mquiet" in rich[2]
    bare = [click.unstyle(line) for line in rich]
    if width > 40:
        assert bare == [click.unstyle(line) for line in plain]
    else:  # one letter stands for what was cut
        assert bare[1].startswith(f"w1@{'host' * 4}")
    assert all(len(line) <= width for line in bare)
    assert "\x1b" not in "".join(rich_without_colour(monkeypatch, width))


def rich_without_colour(monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [[click.unstyle(cell) for cell in row] for row in ROWS]
    return list(output.table(HEAD, rows, width, right=[2]))


def test_without_rich_it_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = list(output.table(HEAD, ROWS, 80))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "celery_graceful.cli.rich_table", None)
    assert list(output.table(HEAD, ROWS, 80)) == plain


def test_what_is_watched_stays_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((80, 5)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert _seen([str(number) for number in range(9)]) == ["0", "1", "2", "and 6 lines more"]
    assert _seen(["0", "1", "2", "3"]) == ["0", "1", "2", "3"]


def test_what_is_wrong_is_seen_below_what_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((80, 8)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    above = [str(number) for number in range(9)]
    found = ["", "one is dead", "  -> rescue"]
    assert _seen(above, found) == ["0", "1", "2", "and 6 lines more", *found]
    assert _seen(above, found * 3) == [
        "0",
        "1",
        "2",
        "and 6 lines more",
        *found[:2],
        "and 7 lines more",
    ]
    assert _seen(above[:2], found) == ["0", "1", *found]
    # A long line takes two rows.
    assert _seen(above, ["", "full " * 20])[:2] == ["0", "1"]
    assert len(_seen(above, ["", "full " * 20])) == 6


def _seen(*parts: list[str]) -> list[str]:
    return click.unstyle(output.frame(*parts)).split("\n")

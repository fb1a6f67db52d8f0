"""What a run of the benchmarks leaves, and what it says of what it has waited for in vain."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from benchmarks import peers
from benchmarks.page import as_json, is_on_page, replaced, tables_of
from benchmarks.plots import PLOTS, fingerprint, path_of
from benchmarks.tables import table
from benchmarks.waiting import Stuck, wait_until
from tests.support.pages import DOCS

PAGE = DOCS / "benchmarks.md"

TABLE = table(("pool", "s", "ratio", "s"), [("solo", "1.50", "2", "not in 15 s")])


def test_figures_take_their_place_on_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    before, after = "# Page\n\n", "\n\n<!-- python -m benchmarks b -->\nold\n<!-- end of b -->\n"
    page.write_text(f"{before}<!-- python -m benchmarks a -->\nold\n<!-- end of a -->{after}")
    assert is_on_page(page, "a")
    assert not is_on_page(page, "c")
    for _ in range(2):  # again and again
        text = replaced(page, "a", "2 cores", TABLE)
        page.write_text(text)
    assert text.startswith(f"{before}<!-- python -m benchmarks a -->\n2 cores:\n\n{TABLE}\n")
    assert text.endswith(f"<!-- end of a -->{after}")
    assert "old" not in text.removesuffix(after)


def test_figures_are_kept_as_json() -> None:
    kept = json.loads(as_json("2 cores", {"a": (f"{TABLE}\n\nand\n\n{TABLE}", 1.04)}))
    row = {"pool": "solo", "s": 1.5, "ratio": 2.0, "s (3)": "not in 15 s"}
    found = {"tables": [[row], [row]], "seconds": 1.0}
    assert kept == {"machine": "2 cores", "benchmarks": {"a": found}}


def test_no_figure_is_typed_by_hand() -> None:
    """All tables of the page are what a benchmark has printed."""
    page = PAGE.read_text(encoding="utf-8")
    block = re.compile(r"<!-- python -m benchmarks (\w+) -->.*?<!-- end of \1 -->", re.DOTALL)
    assert [line for line in block.sub("", page).splitlines() if line.startswith("|")] == []
    assert "to be run" not in page


@pytest.mark.parametrize("name", PLOTS)
def test_pictures_show_what_the_page_says(name: str) -> None:
    (first, *_) = tables_of(PAGE, name)
    assert f">{fingerprint(first)}<" in path_of(PAGE, name).read_text(encoding="utf-8")


def test_a_wait_in_vain_says_what_is_held() -> None:
    client = MagicMock()
    client.keys.return_value = ["q", "graceful:claims:w", "graceful:bell:q"]
    client.type.side_effect = lambda key: "hash" if "claims" in key else "list"
    client.llen.return_value, client.lrange.return_value = 7, ["the next one"]
    client.hlen.return_value, client.hscan.return_value = 1, (0, {"3": "q the one"})
    with pytest.raises(Stuck) as stuck:
        wait_until(lambda: False, "all has ended", client, seconds=0)
    assert str(stuck.value) == (
        "not within 0 s: all has ended. Redis holds:\n"
        "graceful:claims:w: 1 held, 3: q the one\n"
        "q: 7 wait, next the next one"
    )


def test_peers_come_in_turn_with_plain_celery_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [peers.Round(100, 200, 5), peers.Round(100, 400, 5)]
    twice = [peers.Round(200, 400, 2.5), peers.Round(200, 800, 2.5)]
    monkeypatch.setattr(peers, "install", lambda: None)
    monkeypatch.setattr(
        peers, "_throughput", lambda _, some, *__: dict.fromkeys(some, twice) | {some[0]: rounds}
    )
    monkeypatch.setattr(peers, "_losses", lambda _, some, *__: dict.fromkeys(some, 3))
    monkeypatch.setenv("BENCH_KILLS", "20")
    shown = peers.peers(MagicMock(), quick=True)
    plain, ours = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[2:4]
    )
    assert plain == ["1 x 10, plain Celery, threads", "100", "300", "1.00", "5", "20", "3 of 800"]
    assert ours[1:5] == ["200", "600", "2.00", "2"]
    for some in peers.PEERS.values():
        assert some[0].env == {"BENCH_PLAIN": "1"}

"""Writes the settings into their page, ``docs/reference/settings.md``, from the code.

Name, type, default and meaning are those of ``Settings``; the error is what the check of the
setting says when it is given something wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from celery_graceful.exceptions import SettingsError
from celery_graceful.settings import _CHECKS, PREFIX, Settings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"

#: By the page that tells of them at length; each setting is in one group.
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Deadlines": (
        "[How a worker stops](../stopping.md), [platforms](../platforms.md)",
        (
            "grace_period",
            "soft_deadline",
            "hard_deadline",
            "exit_timeout",
            "release_prefetched",
            "dump_stacks",
        ),
    ),
    "Tasks and checkpoints": (
        "[Checkpoints](../checkpoints.md)",
        ("default_task", "store", "store_options", "checkpoint_ttl", "checkpoint_max_bytes"),
    ),
    "Claims, leases, rescue": (
        "[Claims, leases, rescue](../reliable-fetch.md)",
        ("reliable_fetch", "heartbeat_interval", "lease_ttl", "rescue_interval"),
    ),
    "Messages that are kept": (
        "[Poison tasks](../poison.md), [messages that cannot be used](../messages.md)",
        ("poison_limit", "poison_window", "unknown_task_patience"),
    ),
    "Probes": (
        "[Probes](../platforms.md#probes)",
        ("probe_file", "probe_port", "probe_host", "probe_stale"),
    ),
    "Metrics": (
        "[Metrics](../metrics.md)",
        ("metrics", "prometheus_registry"),
    ),
    "Batches": (
        "[Batches](../batches.md)",
        (
            "batch_ttl",
            "batch_linger",
            "batch_repair",
            "batch_missing_after",
            "batch_headers",
            "track_chords",
        ),
    ),
    "History": (
        "[Operations](../operations.md#history)",
        ("history", "history_length", "history_ttl"),
    ),
    "Monitors": (
        "[Monitors](../monitors.md)",
        (
            "monitor_beat",
            "monitor_exclude",
            "monitor_on_interrupt",
            "monitor_reporters",
            "monitor_timeout",
            "healthchecks_url",
        ),
    ),
}

#: What stands for "not set" is not ``None`` to who reads.
UNSET = {
    "grace_period": "detected",
    "soft_deadline": "0.8 of the hard deadline",
    "hard_deadline": "grace - max(grace/6, min(3, 0.4 grace))",
    "store": "the broker, else the result backend",
    "probe_file": "none",
    "probe_port": "none",
    "batch_repair": "see there",
    "monitor_on_interrupt": "stays open",
    "monitor_reporters": "who is set up",
    "healthchecks_url": "none",
}

#: The release that brought those along which are not of the first one.
FIRST = "0.1.0"
SINCE: dict[str, str] = {}

BEGIN, END = "<!-- written by scripts/settings_page.py -->", "<!-- end of what is written -->"


def refusals(name: str) -> str:
    """What the check of a setting says of values that it cannot use."""
    said: list[str] = []
    for wrong in (1e30, object()):
        try:
            _CHECKS[name](PREFIX + name, wrong)
        except SettingsError as error:
            said.append(error.mend)
    return said[0]  # of a number that is out of range, where it is one


def meanings() -> dict[str, str]:
    """The section *Attributes* of the docstring."""
    _, _, text = (Settings.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w|\Z)", text, re.M | re.S)
    return {name: " ".join(meaning.split()).replace("``", "`") for name, meaning in found}


def sections(names: tuple[str, ...]) -> Iterator[str]:
    known = {field.name: field for field in fields(Settings)}
    meaning = meanings()
    for name in names:
        field = known[name]
        kind = re.sub(r"\[.*?\]| \| None|, \.\.\.", "", str(field.type))
        kind = {"Mapping": "dict", "tuple": "list", "float": "float, seconds"}.get(kind, kind)
        yield (
            f"### `{PREFIX}{name}`\n\n{meaning[name]}\n\n"
            f"* type: {kind}\n* default: {_default(field)}\n"
            f"* since: {SINCE.get(name, FIRST)}\n* error: *{refusals(name)}*\n"
        )


def _default(field: Any) -> str:
    if field.name in UNSET:
        return UNSET[field.name]
    if field.default is MISSING:
        return f"`{field.default_factory()!r}`"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(value, float):
        return f"{value:g}" if value < 100_000 else f"{value:.0f} ({value / 86_400:g} days)"
    return f"`{value!r}`"


def rewritten(text: str) -> str:
    """The page with the settings as they are now."""
    parts = []
    for title, (where, names) in GROUPS.items():
        parts += [f"## {title}\n\nAt length: {where}.\n", *sections(names)]
    now = "\n".join(parts)
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n\n{now}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Imports point only downwards: the module map of the design, as a table.

A module may import from layers below its own, and from its own as long as no circle comes of it.
What is imported inside of functions counts, and what only type checkers see.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import celery_graceful

PACKAGE = "celery_graceful"
ROOT = Path(celery_graceful.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "arguments",
        "chain",
        "composed",
        "describe",
        "exceptions",
        "frames",
        "native",
        "per_app",
        "phase",
        "process",
        "settings",
        "signals",
    ),
    (
        "board",
        "board_file",
        "claimant",
        "client",
        "connections",
        "codec",
        "redelivery",
        "failure",
        "fingerprint",
        "flaws",
        "grace_period",
        "kept",
        "landing",
        "log_thread",
        "sending",
        "stage",
        "standby",
        "store",
        "trace_log",
        "worker_state",
    ),
    ("trust", "run"),
    ("claims",),
    (
        "arrival",
        "interrupt",
        "checkpoint",
        "time_limit",
        "cleanup",
        "resource",
        "lease",
        "monitors",
        "transport",
        "hang_up",
        "transports",
    ),
    ("amqp", "fence", "interruption", "safe_point", "sources"),
    ("aio", "eager", "forget", "iteration", "steps", "batch"),
    ("rescue", "quarantine", "poison", "starts", "inquest"),
    ("held", "resending", "unacked", "aftermath", "requeue"),
    ("ledger", "copies", "handover", "host"),
    ("delivery", "pools", "request", "resume", "task", "default_task"),
    ("delay_queues", "waiting", "shelf", "aside", "misfits"),
    ("rights", "membership", "places"),
    (
        "sentinel",
        "hearing",
        "loop",
        "report",
        "revocation",
        "giving_up",
        "quiesce",
        "leaving",
        "other_consumers",
        "restart",
        "watch",
        "drain",
        "parts",
        "guest",
        "control",
        "bootsteps",
    ),
    ("plugin",),
    ("__init__", "cli", "cli_app", "cli_quarantine", "cli_rescue", "doctor", "demo", "testing"),
)

LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    """`pools.green` for `celery_graceful/pools/green.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if len(parts) == 1 or parts[-1] != "__init__" else parts[:-1])


def top(name: str) -> str:
    """The entry of the map that a module belongs to."""
    return name.partition(".")[0]


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


class Imports(ast.NodeVisitor):
    """Collects the modules of this package that a module imports."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.found: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert not node.level, f"{self.module}: a relative import"
        for alias in node.names:
            self.add(f"{node.module}.{alias.name}")

    def visit_Constant(self, node: ast.Constant) -> None:
        # "celery_graceful.bootsteps:WorkerStep": imported later, by name.
        if isinstance(node.value, str) and node.value.startswith(f"{PACKAGE}."):
            name, found, _ = node.value.partition(":")
            if found:
                self.add(name)

    def add(self, name: str) -> None:
        head, _, rest = name.partition(".")
        if head != PACKAGE:
            return
        while rest and rest not in MODULES:  # a name in a module
            rest = rest.rpartition(".")[0]
        self.found.add(rest or "__init__")


def imports(module: str) -> set[str]:
    visitor = Imports(module)
    visitor.visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return visitor.found - {module}


def upwards() -> Iterator[tuple[str, str]]:
    for module in MODULES:
        for imported in imports(module):
            if LAYER_OF[top(imported)] > LAYER_OF[top(module)]:
                yield top(module), top(imported)


def test_every_module_is_on_the_map() -> None:
    assert {top(name) for name in MODULES} <= LAYER_OF.keys()


def test_imports_point_downwards() -> None:
    assert not list(upwards())


def test_no_circles() -> None:
    TopologicalSorter({module: imports(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_redis_is_imported_where_it_belongs(module: str) -> None:
    """Redis is the business of the store's client, and of the transport."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = [
        *(a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names),
        *(n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)),
    ]
    if any(top(name) == "redis" for name in names):
        assert top(module) in ("client", "transport", "demo")


def test_the_layers_are_short_files() -> None:
    """One concept a file: 50 to 300 lines is the aim, 450 is where it stops."""
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > 450} == {}

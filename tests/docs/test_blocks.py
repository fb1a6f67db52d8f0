"""Each code block of the pages: what it imports, sets, calls and runs is there."""

from __future__ import annotations

import ast
import configparser
import importlib
import itertools
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

import click
import pytest
import yaml
from celery.bin.celery import celery

from celery_graceful import GracefulTask
from celery_graceful.settings import PREFIX, Settings
from tests.support.pages import PAGES, ROOT, Block, blocks, prose

SETTINGS = {field.name for field in fields(Settings)}
LANGUAGES = {
    *("python", "console", "text", "json", "yaml", "toml", "ini", "dockerfile", "mermaid", "sh"),
    *("{toctree}", "{include}", "{literalinclude}", "{eval-rst}"),
}
INSTRUCTIONS = ["FROM", "RUN", "CMD", "ENTRYPOINT", "COPY", "ENV", "WORKDIR", "STOPSIGNAL", "USER"]


def test_every_block_says_what_it_is() -> None:
    for block in blocks():
        assert block.language in LANGUAGES, f"{block}: {block.language!r}"


def test_every_picture_says_what_it_shows() -> None:
    for block in blocks("mermaid"):
        assert re.search("^ *accTitle: .+", block.text, re.M), block


# -- Python ------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [*blocks("python")], ids=str)
def test_python(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        for module, name in _imports(node):
            try:
                importlib.import_module(f"{module}.{name}")
            except ImportError:
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
        for name in _settings(node):
            assert name in SETTINGS, f"{PREFIX}{name}"
        for name in _of_the_task(node):
            assert hasattr(GracefulTask, name), f"self.{name}"


def _imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What is imported of Celery and of ours."""
    if isinstance(node, ast.ImportFrom) and node.module:
        if node.module.partition(".")[0] in ("celery", "celery_graceful"):
            yield from ((node.module, alias.name) for alias in node.names)
    elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "celery_graceful":
        yield "celery_graceful", node.attr


def _settings(node: ast.AST) -> Iterator[str]:
    """What is set or read as ``app.conf.graceful_...``, or by the name that it has in Django."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("conf"):
        name = node.attr
    elif isinstance(node, ast.Name) and node.id.isupper():
        name = node.id.removeprefix("CELERY_").lower()
    else:
        return
    if name.startswith(PREFIX):
        yield name.removeprefix(PREFIX)


def _of_the_task(node: ast.AST) -> Iterator[str]:
    """What a bound graceful task asks of ``self``."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    if any("GracefulTask" in ast.unparse(one) for one in node.decorator_list):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self":
                yield inner.attr


# -- Data --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [*blocks("json", "yaml", "toml", "ini", "dockerfile")], ids=str)
def test_data(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        assert list(yaml.safe_load_all(block.text))
    elif block.language == "toml":
        pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(block.text)
    elif block.language == "ini":
        configparser.ConfigParser(strict=False, interpolation=None).read_string(block.text)
    else:
        for line in filter(None, block.text.replace("\\\n", " ").splitlines()):
            assert line.split()[0] in INSTRUCTIONS, line


# -- Commands ----------------------------------------------------------------------------


def _commands(text: str) -> Iterator[str]:
    """The commands of a console: what follows a ``$``, or all of it where no line has one."""
    lines = text.replace("\\\n", " ").splitlines()
    shown = [line[2:] for line in lines if line.startswith("$ ")]
    yield from shown or lines


def _parts(line: str) -> Iterator[list[str]]:
    """The words of each command of a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "#", True
    part: list[str] = []
    for word in lexer:
        if set(word) <= set(";|&"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _check(command: str, where: object) -> None:
    """Commands and options that are Celery's, ours or the Makefile's are there."""
    for part in _parts(command):
        words = [*itertools.takewhile(lambda word: word != "...", part)]
        while words and ("=" in words[0] or words[0] in ("exec", "env")):
            words.pop(0)
        if words[:2] == ["python", "-m"]:
            words = words[2:]
        if words[:1] == ["make"]:
            (target, *_) = [word for word in words[1:] if "=" not in word] or ["help"]
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), where
        elif words[:1] == ["celery"]:
            try:
                _parse(celery, words[1:])
            except click.UsageError as error:
                pytest.fail(f"{where}: {shlex.join(part)}: {error.format_message()}")


def _parse(command: click.Command, words: list[str]) -> None:
    """As click does, down to the last subcommand, without the values' types."""
    ctx = click.Context(command)
    if not isinstance(command, click.Group):
        command.make_parser(ctx).parse_args(words)
        return
    ctx.allow_interspersed_args = False
    _, rest, _ = command.make_parser(ctx).parse_args(words)
    if rest:
        _, sub, left = command.resolve_command(ctx, rest)
        assert sub is not None, rest
        _parse(sub, left)


@pytest.mark.parametrize("block", [*blocks("console", "sh")], ids=str)
def test_consoles(block: Block) -> None:
    for command in _commands(block.text):
        _check(command, block)


def _alternatives(command: str) -> list[str]:
    """Of ``graceful quiet|resume|stop`` three."""
    found = re.search(r"[\w|]+\|\w+", command)
    if found is None:
        return [command]
    return [command.replace(found[0], one) for one in found[0].split("|")]


@pytest.mark.filterwarnings("ignore:The parameter -d")  # Celery has it twice
def test_commands_in_the_text() -> None:
    seen = Counter[str]()
    for page in PAGES:
        for command in re.findall(r"`(celery [^`]*)`", prose(page)):
            for one in _alternatives(command):
                _check(one, page.name)
            seen[page.name] += 1
    assert seen.total() > 10

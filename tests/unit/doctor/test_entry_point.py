"""What stands between a platform and a worker."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from celery_graceful.doctor.entry_point import for_a_shell, in_front, read_dockerfile

#: What is started, and whether a shell keeps the signal: no, yes, or that depends on the shell.
COMMANDS: list[tuple[list[str], bool | None]] = [
    (["celery", "-A", "shop", "worker"], None),
    (["python", "-m", "celery", "worker"], None),
    (["sh", "-c", "celery -A shop worker"], False),
    (["/bin/bash", "-ec", "celery -A shop worker"], False),
    (["sh", "-c", "exec celery -A shop worker"], None),
    (["sh", "-c", "C=1 exec celery worker"], None),
    (["sh", "-c", "migrate && celery -A shop worker"], True),
    (["sh", "-c", "migrate && exec celery -A shop worker"], None),
    (["sh", "-c", "migrate; celery worker"], True),
    (["sh", "-c", "exec migrate; celery worker"], True),
    (["sh", "-c", "echo 'a && b; c' worker"], False),
    (["busybox", "sh", "-c", "a; celery worker"], True),
    (["tini", "--", "sh", "-c", "a; celery worker"], True),
    (["tini", "-g", "--", "sh", "-c", "a; celery worker"], None),
    (["tini", "--", "celery", "worker"], None),
    (["dumb-init", "sh", "-c", "a; celery worker"], None),
    (["dumb-init", "--single-child", "sh", "-c", "a; celery worker"], True),
    (["env", "A=1", "sh", "-c", "a; celery worker"], True),
    (["gosu", "app", "sh", "-c", "a; celery worker"], True),
    (["gosu", "app", "celery", "worker"], None),
    (["good.sh", "celery"], None),
    (["/app/bad.sh"], True),
    (["bash", "-x", "bad.sh", "celery"], True),
    (["sh", "-e", "good.sh"], None),
    (["/entrypoint", "celery"], True),
    (["program"], None),
    (["bash", "-eo", "pipefail", "-c", "a; celery worker"], False),
    (["bash", "-c", "a && celery worker"], False),
    (["bash", "-c", "a && celery worker | tee log"], True),
    (["bash", "-c", "celery worker & wait"], True),
    (["bash", "-o", "pipefail", "-c", "a; exec celery worker;"], None),
    (["bash", "--login", "-c", "celery worker"], False),
    ([], None),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    (folder / "good.sh").write_text('#!/bin/sh\nset -e\nmigrate\nexec "$@"\n')
    (folder / "bad.sh").write_text("#!/bin/sh\nexec 2>/dev/null\n# exec celery\ncelery worker\n")
    (folder / "entrypoint").write_text("#!/usr/bin/env bash\ncelery worker\n")
    (folder / "program").write_text("#!/usr/bin/env python3\n")
    return folder


@pytest.mark.parametrize(("argv", "sure"), COMMANDS, ids=lambda value: str(value))
def test_a_shell_in_front(argv: list[str], sure: bool | None, folder: Path) -> None:
    found = in_front(argv, folder)
    assert (found and found[1]) is sure


def test_a_script_that_is_not_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        in_front(["sh", "elsewhere.sh"], folder)


DOCKERFILES: list[tuple[str, list[str]]] = [
    ('CMD ["celery", "worker"]', ["celery", "worker"]),
    ("CMD celery worker", ["/bin/sh", "-c", "celery worker"]),
    ('ENTRYPOINT ["tini", "--"]\nCMD ["celery"]', ["tini", "--", "celery"]),
    ('ENTRYPOINT ["/run.sh"]\nCMD celery', ["/run.sh", "/bin/sh", "-c", "celery"]),
    ('CMD ["celery"]\nENTRYPOINT run', ["/bin/sh", "-c", "run"]),
    ('ENTRYPOINT run\nCMD ["celery"]', ["/bin/sh", "-c", "run"]),
    ('SHELL ["/bin/bash", "-c"]\nCMD celery', ["/bin/bash", "-c", "celery"]),
    ('CMD ["celery", \\\n  # the app\n  "worker"]', ["celery", "worker"]),
    ('CMD ["a"]\ncmd ["b"]', ["b"]),
    ('FROM x AS builder\nENTRYPOINT ["a"]\nFROM y\nCMD ["b"]', ["b"]),
    ("RUN echo CMD x", []),
    ('CMD ["celery"]\nENTRYPOINT ["tini", "--"]', ["tini", "--", "celery"]),
    ('ENTRYPOINT ["run"]\nENTRYPOINT []\nCMD ["celery"]', ["celery"]),
    ("CMD celery\nCMD []", []),
    ("FROM x AS b\nCMD celery\nFROM b", ["/bin/sh", "-c", "celery"]),
    ('FROM x AS Base\nENTRYPOINT ["a"]\nFROM y\nFROM --platform=z bASE AS c', ["a"]),
    ('FROM x AS b\nCMD ["a"]\nFROM b AS c\nCMD ["c"]\nFROM b', ["a"]),
    ('FROM x AS b\nCMD ["a"]\nFROM b\nENTRYPOINT ["c"]', ["c"]),
    ('FROM x AS b\nENTRYPOINT a\nFROM b\nCMD ["c"]', ["/bin/sh", "-c", "a"]),
    ('FROM x AS b\nSHELL ["bash", "-c"]\nFROM b\nCMD a', ["bash", "-c", "a"]),
    ('FROM x AS b\nCMD ["a"]\nFROM b:3', []),
    ('FROM x\nCMD ["a"]\nFROM 0', []),
    ('CMD ["a"]\nRUN <<EOF\nCMD b\nEOF', ["a"]),
    ('CMD ["a"]\nRUN <<-"X" bash && cat <<Y\nCMD b\n\tX\nCMD c\nY', ["a"]),
    ('CMD ["a"]\nCOPY <<EOF <<END /x/\nCMD b\nEOF\nCMD c\nEND', ["a"]),
    ('CMD ["a"]\nRUN bash <<< x\nCMD ["b"]', ["b"]),
    ("RUN echo 'it <<EOF is'\nRUN it's <<EOF\nCMD [\"b\"]", ["b"]),
    ('CMD ["a", \\\n\n "b"]', ["a", "b"]),
]


@pytest.mark.parametrize(("text", "argv"), DOCKERFILES)
def test_what_an_image_starts(text: str, argv: list[str], tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(f"FROM python\n{text}\nSTOPSIGNAL SIGQUIT\n")
    started = read_dockerfile(path)
    assert started.argv == argv
    assert started.stop_signal == "SIGQUIT"


@pytest.mark.parametrize(
    ("text", "signal"),
    [
        ("", "SIGTERM"),
        ("ARG S=SIGKILL\nSTOPSIGNAL $S", "SIGKILL"),
        ('ENV S="SIGKILL" X=y\nSTOPSIGNAL "${S}"', "SIGKILL"),
        ("ENV S SIGKILL\nARG S=SIGTERM\nSTOPSIGNAL $S", "SIGKILL"),
        ("ARG N=KILL\nENV S=SIG$N\nSTOPSIGNAL $S", "SIGKILL"),
        ("STOPSIGNAL ${S:-SIGINT}", "SIGINT"),
        ("ARG S=\nSTOPSIGNAL ${S:-SIGINT}", "SIGINT"),
        ("ARG S=\nSTOPSIGNAL SIG${S-KILL}INT", "SIGINT"),
        ("ARG S=1\nSTOPSIGNAL SIG${S:+KILL}", "SIGKILL"),
        ("ARG S=\nSTOPSIGNAL SIG${S:+KILL}INT", "SIGINT"),
        ("STOPSIGNAL SIG${S:+KILL}", None),
        ("ARG S\nSTOPSIGNAL $S", None),
        ("STOPSIGNAL $S", None),
        ("ENV S=${OTHER}\nSTOPSIGNAL $S", None),
        ("ARG S=it's\nSTOPSIGNAL $S", None),
        ("ARG S=SIGKILL\nSTOPSIGNAL ${S%KILL}TERM", None),
        ("STOPSIGNAL \\$S", "$S"),
        ("STOPSIGNAL SIGKILL\nFROM x", "SIGTERM"),
        ("ARG S=SIGKILL\nFROM x\nSTOPSIGNAL $S", None),
        ("FROM x AS b\nARG S=SIGKILL\nFROM b\nSTOPSIGNAL $S", "SIGKILL"),
        ("FROM x AS b\nSTOPSIGNAL SIGKILL\nFROM b", "SIGKILL"),
        ("STOPSIGNAL SIGKILL\nRUN <<EOF\nSTOPSIGNAL SIGTERM\nEOF", "SIGKILL"),
    ],
)
def test_what_stops_it(text: str, signal: str | None, tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(f"FROM python\n{text}\n")
    assert read_dockerfile(path).stop_signal == signal


def test_what_stands_before_the_first_stage(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(
        "\ufeff# syntax=docker/dockerfile:1\n# escape=`\nARG S=SIGKILL B=b\nFROM x AS b\n"
        "CMD celery `\n worker\nFROM ${B}\nARG S\nSTOPSIGNAL $S\n",
        encoding="utf-8",
    )
    started = read_dockerfile(path)
    assert started.argv == ["/bin/sh", "-c", "celery  worker"]
    assert started.stop_signal == "SIGKILL"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("celery -A shop worker", None),
        ("python manage.py migrate && celery -A shop worker", "&&"),
        ("migrate; celery worker", "migrate;"),
        ("celery worker 2>&1 | tee log", "2>&1"),
        ("celery worker >log", ">log"),
        ("celery worker & wait", "&"),
        ("C=1 celery worker", "C=1"),
        ("env C=1 celery worker", None),
        ("sh -c 'migrate && celery worker;'", None),
        ("celery -b 'redis://h/0?a=1&b=2' worker", None),
        ("", None),
    ],
)
def test_lines_for_a_shell(line: str, word: str | None) -> None:
    assert for_a_shell(shlex.split(line)) == word

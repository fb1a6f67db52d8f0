"""What stands between a platform and a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_graceful.doctor.entry_point import in_front, read_dockerfile

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
    (["env", "A=1", "bash", "-c", "a; celery worker"], True),
    (["gosu", "app", "sh", "-c", "a; celery worker"], True),
    (["gosu", "app", "celery", "worker"], None),
    (["good.sh", "celery"], None),
    (["/app/bad.sh"], True),
    (["bash", "-x", "bad.sh", "celery"], True),
    (["sh", "-e", "good.sh"], None),
    (["/entrypoint", "celery"], True),
    (["program"], None),
    (["bash", "-eo", "pipefail", "-c", "a; celery worker"], True),
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
]


@pytest.mark.parametrize(("text", "argv"), DOCKERFILES)
def test_what_an_image_starts(text: str, argv: list[str], tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(f"FROM python\n{text}\nSTOPSIGNAL SIGQUIT\n")
    started = read_dockerfile(path)
    assert started.argv == argv
    assert started.stop_signal == "SIGQUIT"

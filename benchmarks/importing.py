"""What a web process pays for the package before it sends its first task."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median

from benchmarks.tables import table
from tests.servers import RedisServer

__all__ = ["importing"]

#: The clock of the processor, since others use it too.
TIMED = """
import time
from celery import Celery, Task; Celery, Task
began = time.process_time()
import celery_graceful
print(1000 * (time.process_time() - began))
"""

ALL = TIMED.replace("from celery", "began = time.process_time()\nfrom celery").replace(
    "began = time.process_time()\nimport celery_graceful\n", ""
)


def importing(redis: RedisServer, *, quick: bool) -> str:
    """``import celery_graceful`` behind ``from celery import Celery, Task``, in fresh processes."""
    rounds = 11 if quick else 51
    # Who has deployed has bytecode.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    took: dict[str, list[float]] = {"Celery": [], "celery_graceful, on top": []}
    for _ in range(rounds):
        for name, code in zip(took, (ALL, TIMED), strict=True):
            done = subprocess.run(
                [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True
            )
            took[name].append(float(done.stdout))
    rows = [(name, f"{min(ms):.0f}", f"{median(ms):.0f}") for name, ms in took.items()]
    return table(("", "best CPU ms", "median"), rows)

"""A task that is killed while somebody traces."""

from __future__ import annotations

import sys
from typing import Any

from celery_graceful.testing import graceful_run

__all__ = ["assert_sees_each_call_end"]


def assert_sees_each_call_end(task: Any, path: str) -> None:
    """Kill it at its first checkpoint, under a tracer that counts the calls in that file."""
    depth: list[str] = []

    def tracer(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename == path:
            if event == "call":
                depth.append(frame.f_code.co_name)
            elif event == "return":
                assert depth.pop() == frame.f_code.co_name
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        run = graceful_run(task).kill_at(checkpoint=1)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert (run.outcome, depth) == ("killed", [])

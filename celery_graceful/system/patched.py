"""Whether gevent or eventlet has patched this process, and what was there before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["by_eventlet", "hub_of_thread", "is_gevent", "is_green", "original"]


def original(module: str, name: str) -> Any:
    """``module.name`` as it was before any monkey patching."""
    if by_eventlet():
        from eventlet.patcher import original

        return getattr(original(module), name)
    if "gevent.monkey" in sys.modules:
        from gevent.monkey import get_original

        return get_original(module, name)
    return getattr(__import__(module), name)


def by_eventlet() -> bool:
    """Whether eventlet has patched anything: others import both to ask which of them has."""
    if "eventlet.patcher" not in sys.modules:
        return False
    from eventlet.patcher import is_monkey_patched

    return any(map(is_monkey_patched, ("thread", "os", "select", "time", "socket")))


def is_gevent() -> bool:
    """Whether gevent has patched this process."""
    if "gevent.monkey" not in sys.modules:
        return False
    from gevent.monkey import is_module_patched

    return bool(is_module_patched("threading"))


def is_green() -> bool:
    """Whether gevent or eventlet has patched this process."""
    if "eventlet.patcher" in sys.modules:
        from eventlet.patcher import is_monkey_patched

        if is_monkey_patched("thread"):
            return True
    return "gevent.monkey" in sys.modules and is_gevent()  # each run of a task asks


def hub_of_thread() -> tuple[bool, Callable[[float], None] | None]:
    """Whether this thread has a hub, and what lets its other greenlets run: not from the hub."""
    from greenlet import getcurrent

    if is_gevent():
        from gevent import sleep
        from gevent._hub_local import get_hub_if_exists

        hub = get_hub_if_exists()
    else:
        from eventlet import sleep
        from eventlet.hubs import _threadlocal

        hub = getattr(getattr(_threadlocal, "hub", None), "greenlet", None)
    return hub is not None, None if hub in (None, getcurrent()) else sleep

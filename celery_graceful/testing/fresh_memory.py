"""What a new process does not have: what the code of a task keeps in memory.

Followed are the functions that a task calls in its own module, the globals and variables of outer
functions that they name, their attributes and default arguments, objects of classes of that module
and of classes that are there to hold something, what is in containers, caches, and the attributes
of the task. They become again what they were, and locks are free; what stands for the world outside
is left as it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from types import (
    BuiltinMethodType,
    CellType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import celery

from celery_graceful.task.base import GracefulTask

__all__ = ["FreshMemory", "named_by"]

#: What can be emptied and filled again in its place.
_CONTAINERS = (list, dict, set, deque, bytearray)
_CACHE = type(functools.lru_cache(repr))
_LOCK = type(threading.Lock())
#: Of the standard library, whose attributes are what they are there for.
_HOLDERS = (SimpleNamespace, threading.local, threading.Event, threading.Semaphore, queue.Queue)
_VALUES = (str, bytes, int, float, complex, bool, tuple, frozenset, type(None))


class FreshMemory:
    """The memory of a task as it is now.

    Args:
        task: The task.
        outside: Objects that are no memory of it.
    """

    def __init__(self, task: GracefulTask, outside: Iterable[Any] = ()) -> None:
        self._module = task.run.__module__
        self.outside = tuple(outside)
        self._outside = {id(each) for each in self.outside}
        self._seen = set(self._outside)
        #: Names, each with whether it has changed, and what puts it back.
        self._memory: list[tuple[str, Callable[[], bool], Callable[[], None]]] = []
        self._caches: list[Any] = []
        #: The names of what had changed when it was put back, all times together.
        self.forgotten: dict[str, None] = {}
        self._follow(task.name, task)

    def begin(self) -> None:
        """Everything is as it was when this was made."""
        for name, has_changed, put_back in self._memory:
            try:
                changed = has_changed()
            except Exception:  # compared by somebody else's __eq__
                changed = True
            if changed:
                self.forgotten[name] = None
                put_back()
        for cache in self._caches:
            cache.cache_clear()

    def _follow(self, name: str, value: Any) -> None:
        if id(value) in self._seen or (_is(value, *_VALUES) and not _is(value, tuple)):
            return
        self._seen.add(id(value))
        if _is(value, GracefulTask):
            self._keep_attributes(name, value, celery.Task)
            for cls in type(value).__mro__:
                if cls.__module__ == self._module or cls is type(value):
                    self._follow_class(name, cls)
            run: Any = value.run
            self._follow(name, inspect.unwrap(getattr(run, "__func__", run)))
        elif _is(value, _CACHE):
            self._caches.append(value)
            self._follow(name, value.__wrapped__)
        elif _is(value, FunctionType):
            if value.__module__ == self._module:
                self._follow_function(value)
        elif _is(value, MethodType, staticmethod, classmethod):
            self._follow(name, value.__func__)
        elif _is(value, type):
            if value.__module__ == self._module:
                self._follow_class(value.__name__, value)
        elif _is(value, *_CONTAINERS, tuple):
            if not _is(value, tuple):
                self._keep_content(name, value)
            inside = f"something in {name}"
            for each in list(value.values() if _is(value, dict) else value):
                self._follow(inside, each)
        elif _is(value, ContextVar):
            self._follow_place(name, _Place(name, value))
        elif _is(value, _LOCK):
            if not value.locked():
                self._keep(name, value.locked, value.release)
        elif _is(value, *_HOLDERS):
            self._keep_attributes(name, value, object)
        elif type(value).__module__ == self._module:
            self._follow_object(name, value)

    def _follow_place(self, name: str, place: _Place) -> None:
        self._keep_value(name, place)
        self._follow(name, place.value)

    def _follow_function(self, fn: FunctionType) -> None:
        self._keep_attributes(fn.__name__, fn, FunctionType)
        for place in _places(fn.__code__, fn):
            self._follow_place(place.name, place)
        for default in [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]:
            self._follow(f"a default of {fn.__name__}", default)

    def _follow_object(self, name: str, value: Any) -> None:
        if hasattr(value, "__dict__"):
            self._keep_attributes(name, value, object)
        for cls in type(value).__mro__:
            for key, slot in vars(cls).items():
                if cls.__module__ == self._module and _is(slot, MemberDescriptorType):
                    self._follow_place(f"{name}.{key}", _Place(key, value))
        self._follow_class(type(value).__name__, type(value))

    def _follow_class(self, name: str, cls: type) -> None:
        for key, value in list(vars(cls).items()):
            if not key.startswith("__") and key not in dir(celery.Task):
                self._keep_value(f"{name}.{key}", _Place(key, cls))
                self._follow(f"{name}.{key}", getattr(value, "fget", value))

    def _keep_value(self, name: str, place: _Place) -> None:
        value = place.value
        if _is(value, *_VALUES, *_CONTAINERS) and not any(map(place.is_same, self.outside)):
            self._keep(name, partial(place.differs, value), partial(place.put, value))

    def _keep(
        self, name: str, has_changed: Callable[[], bool], put_back: Callable[[], None]
    ) -> None:
        self._memory.append((name, has_changed, put_back))

    def _keep_content(self, name: str, value: Any) -> None:
        content = self._copy(value)

        def put_back() -> None:
            fresh = self._copy(content)
            value.clear()
            value.update(fresh) if _is(value, dict, set) else value.extend(fresh)

        self._keep(name, lambda: value != content, put_back)

    def _keep_attributes(self, name: str, value: Any, base: type) -> None:
        """Those that say something, and are not of ``base``."""
        attributes, known = vars(value), set(dir(base))  # which wakes up nothing

        def memory() -> dict[str, Any]:
            return {
                key: each
                for key, each in attributes.items()
                if _is(each, *_VALUES, *_CONTAINERS)
                and not (key.startswith("__") or key in known or id(each) in self._outside)
            }

        before = self._copy(memory())

        def put_back() -> None:
            for key in memory().keys() - before.keys():
                del attributes[key]
            attributes.update(self._copy(before))

        self._keep(name, lambda: memory() != before, put_back)
        for key, each in list(attributes.items()):
            if not (key in known or _is(each, *_CONTAINERS)):
                self._follow(f"{name}.{key}", each)

    def _copy(self, value: Any, memo: dict[int, Any] | None = None) -> Any:
        """Containers are copied, and what is in them that is none stays what it is."""
        memo = {} if memo is None else memo
        if id(value) in self._outside or not _is(value, *_CONTAINERS, tuple):
            return value
        if id(value) in memo:
            return memo[id(value)]
        if _is(value, tuple, bytearray, set):
            return copy.copy(value)  # what is in a set does not change
        made = memo[id(value)] = copy.copy(value)
        for key in made if _is(made, dict) else range(len(made)):
            made[key] = self._copy(made[key], memo)
        return made


def _is(value: Any, *kinds: type) -> bool:
    """``isinstance`` that does not wake up proxies."""
    return issubclass(type(value), kinds)


class _Place:
    """Where a value is kept.

    Args:
        name: Of a global, of an attribute.
        kept_in: The globals; a class, or an object with slots; otherwise what keeps one value.
    """

    def __init__(self, name: str, kept_in: Any) -> None:
        self.name, self._in = name, kept_in

    @property
    def value(self) -> Any:
        """What is there; ``None`` if there is nothing."""
        try:
            if _is(self._in, CellType):
                return self._in.cell_contents
            if _is(self._in, ContextVar):
                return self._in.get()
        except (ValueError, LookupError):
            return None
        if _is(self._in, dict):
            return self._in.get(self.name)
        if _is(self._in, type):
            return vars(self._in).get(self.name)
        return getattr(self._in, self.name, None)

    def put(self, value: Any) -> None:
        """That is there now."""
        if _is(self._in, CellType):
            self._in.cell_contents = value
        elif _is(self._in, ContextVar):
            self._in.set(value)
        elif _is(self._in, dict):
            self._in[self.name] = value
        elif _is(self._in, type):
            setattr(self._in, self.name, value)
        else:  # also where its class is frozen
            object.__setattr__(self._in, self.name, value)

    def differs(self, value: Any) -> bool:
        """Whether something else is there."""
        return self.value is not value

    def is_same(self, other: Any) -> bool:
        """Whether ``other`` is this very place."""
        return isinstance(other, _Place) and other._in is self._in and other.name == self.name


def _places(code: CodeType, fn: FunctionType) -> Iterator[_Place]:
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    for name in code.co_freevars:
        if name in cells:
            yield _Place(name, cells[name])
    for name in code.co_names:
        if name in fn.__globals__:
            yield _Place(name, fn.__globals__)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _places(const, fn)


def named_by(*given: Any) -> list[Any]:
    """Objects; of functions also what they name, themselves or where they call each other."""
    found: dict[int, Any] = {}
    places: list[Any] = []
    waiting = list(given)
    modules = {each.__module__ for each in given if _is(each, FunctionType)}
    while waiting:
        value = waiting.pop()
        if id(value) in found or _is(value, *_VALUES, type, ModuleType, celery.Task):
            continue
        found[id(value)] = value
        if _is(value, MethodType):
            waiting += [value.__self__, value.__func__]
        elif _is(value, BuiltinMethodType):  # such as list.clear
            waiting.append(value.__self__)
        elif _is(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif _is(value, FunctionType) and value.__module__ in modules:
            for place in _places(value.__code__, value):
                places.append(place)
                waiting.append(place.value)
    return [*found.values(), *places]

"""Headers that members and callbacks of batches have, whoever sends them, and when.

What an app adds while it sends, the name of a tenant for instance, is added by who sends: of a
callback, or a member that is sent again, that is a worker, which knows of no request. So what
``graceful_batch_headers`` says is asked where a batch is sent, and kept with each signature; and it
is put over what is added later, by whoever then sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.signals import before_task_publish
from celery.utils.functional import maybe_list
from celery.utils.imports import symbol_by_name
from kombu.utils.json import dumps, loads

from celery_graceful.batches.marks import parts_of
from celery_graceful.exceptions import SettingsError
from celery_graceful.messages.context import BESIDE
from celery_graceful.messages.own_headers import KEPT
from celery_graceful.settings import PREFIX, Settings
from celery_graceful.store.app_stores import settings_of
from celery_graceful.system.describe import describe

__all__ = ["are_kept", "check_function", "headers_here", "keep"]

_SETTING = f"{PREFIX}batch_headers"

_UID = "graceful_kept_headers"
_AGAIN = f"{_UID}_again"

Function = Callable[[], "Mapping[str, Any] | None"]


def check_function(settings: Settings) -> None:
    """See whether there is the function that is named.

    Raises:
        SettingsError: It is not there.
    """
    if settings.batch_headers is not None:
        _function(settings.batch_headers)


def _function(given: str | Function) -> Function:
    try:
        found = symbol_by_name(given)  # itself, if it is none
    except (ImportError, AttributeError) as exc:
        mend = f"name one that is there, as module:attribute: {describe(exc)}"
        raise SettingsError(_SETTING, given, mend) from exc
    if not callable(found):
        raise SettingsError(_SETTING, given, f"name a function, not a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def headers_here(app: Any) -> dict[str, Any]:
    """What members and callbacks that are sent here and now are to have.

    Raises:
        SettingsError: There is no such function, or what it returns are no headers.
        Exception: What it raises.
    """
    given = settings_of(app).batch_headers
    if given is None:
        return {}
    headers = _function(given)()
    if not headers:
        return {}
    if not isinstance(headers, Mapping):
        mend = f"it has to return a dict, not {headers!r}"
        raise SettingsError(_SETTING, given, mend)
    for name in headers:
        if not isinstance(name, str) or _is_taken(name):
            mend = f"it returns a header {name!r}, which means something else: rename it"
            raise SettingsError(_SETTING, given, mend)
    try:
        return dict(loads(dumps(dict(headers))))
    except Exception as exc:
        mend = f"it has to return what can be serialized as JSON: {describe(exc)}"
        raise SettingsError(_SETTING, given, mend) from exc


def _is_taken(name: str) -> bool:
    return name.startswith(PREFIX) or name in BESIDE or hasattr(Context, name)


def keep(sig: Any, headers: Mapping[str, Any]) -> None:
    """Have all tasks of a signature keep them, and what is linked to them.

    What one has of its own stays, and is kept as well.

    Args:
        sig: The signature; it is changed, and so are those that it is made of.
        headers: As of ``headers_here``.
    """
    if not headers:
        return
    options, inner = sig.options, parts_of(sig)
    if inner is None or "headers" in options:  # which take the place of those of its tasks
        own = options.get("headers") or {}
        said = {name: own.get(name, value) for name, value in headers.items()}
        options["headers"] = {**own, **said, KEPT: said}
    for part in inner or ():
        keep(part, headers)
    for linked in ("link", "link_error"):
        if options.get(linked):
            options[linked] = [_kept(one, headers) for one in maybe_list(options[linked])]


def _kept(linked: Any, headers: Mapping[str, Any]) -> Any:
    sig = maybe_signature(linked, clone=True)
    keep(sig, headers)
    return sig


def are_kept() -> None:
    """See to it that they are put over what others add: who comes last has the last word."""
    last = before_task_publish.receivers[-1:]
    if not (last and last[0][1] is _put):
        # Twice for a moment, and never not at all: another thread may be sending.
        before_task_publish.connect(_put, weak=False, dispatch_uid=_AGAIN)
        before_task_publish.disconnect(dispatch_uid=_UID)
        before_task_publish.connect(_put, weak=False, dispatch_uid=_UID)
        before_task_publish.disconnect(dispatch_uid=_AGAIN)


def _put(headers: Any = None, **_: Any) -> None:
    kept = headers.get(KEPT) if isinstance(headers, dict) else None
    if kept:
        headers.update(kept)

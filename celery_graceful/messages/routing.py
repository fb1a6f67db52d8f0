"""Which queues tasks are sent to, as far as an app knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery.app.routes import MapRoute

__all__ = ["DELAYED", "known_queues", "routed_to"]

#: What says where a task is sent, in its options and on its class.
ROUTING = ("queue", "exchange", "routing_key")

#: Those in which RabbitMQ keeps what has an ETA (native delayed delivery), from the last one on.
DELAYED = [f"celery_delayed_{level}" for level in range(27, -1, -1)]


def routed_to(
    app: Any,
    name: str,
    options: Mapping[str, Any],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> list[str]:
    """Queues that a task is sent to: what it is routed by may be the name of one.

    Args:
        app: The Celery app.
        name: Of the task.
        options: It is sent with.
        args: Of the task; users' routers may look at them.
        kwargs: As ``args``.

    Raises:
        Exception: Users' routers may raise anything.
    """
    task = app.tasks.get(name)
    given = {each: getattr(task, each, None) for each in ROUTING}
    given.update({each: options[each] for each in ROUTING if each in options})
    given = {each: value for each, value in given.items() if value is not None}
    route = app.amqp.router.route(given, name, args, kwargs)
    queue = route.get("queue")
    names = [getattr(queue, "name", queue), route.get("routing_key")]
    return [each for each in names if isinstance(each, str)]


def known_queues(app: Any) -> list[str]:
    """Those that an app is configured with, and that its tasks and ``task_routes`` name."""
    known = dict.fromkeys(app.amqp.queues)
    for router in app.amqp.router.routes or ():
        if isinstance(router, MapRoute):
            known.update(dict.fromkeys(_named_in(router)))
    for name in list(app.tasks):
        if not name.startswith("celery."):
            try:
                known.update(dict.fromkeys(routed_to(app, name, {})))
            except Exception:  # a router that needs the arguments
                continue
    return [name for name in known if name]


def _named_in(router: MapRoute) -> Iterator[str]:
    for route in (*router.map.values(), *router.patterns.values()):
        queue = route.get("queue") if isinstance(route, Mapping) else route
        name = getattr(queue, "name", queue)
        if isinstance(name, str):
            yield name

"""A pytest plugin: puts our transport in the place of kombu's for kombu's own tests."""

from __future__ import annotations

from kombu.transport import redis

from celery_graceful.claims import transport

for name in transport.__all__:
    setattr(redis, name, getattr(transport, name))

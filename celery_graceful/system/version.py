"""Name and version, for all that says them."""

__all__ = ["NAME", "VERSION"]

NAME = "celery_graceful"
VERSION = "0.1.0"

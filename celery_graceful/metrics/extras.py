"""What has to be installed besides, by those who want numbers."""

from __future__ import annotations

from importlib.util import find_spec

from celery_graceful.exceptions import SettingsError
from celery_graceful.settings import Settings

__all__ = ["check_extras"]

#: By exporter.
_EXTRAS = {"prometheus": "prometheus_client", "otel": "opentelemetry.metrics"}


def check_extras(settings: Settings) -> None:
    """Whether all is installed that the settings ask for.

    Raises:
        SettingsError: It is not.
    """
    for name in settings.metrics:
        if not _is_there(_EXTRAS[name]):
            mend = f"that needs an extra: pip install 'celery_graceful[{name}]'"
            raise SettingsError("graceful_metrics", name, mend)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what it is in
        return False

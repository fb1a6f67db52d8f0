"""Measurements of celery_graceful, side by side with plain Celery where it has such a thing."""

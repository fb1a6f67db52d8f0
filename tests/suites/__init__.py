"""Celery's own tests, plain and with the package: `make suites`."""

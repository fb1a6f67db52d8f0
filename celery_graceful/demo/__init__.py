"""``python -m celery_graceful.demo``: a deploy, watched from the outside."""

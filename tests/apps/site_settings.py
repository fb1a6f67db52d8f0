"""The least that a Django project can do with."""

SECRET_KEY = "not one"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
CELERY_GRACEFUL_GRACE_PERIOD = 25
CELERY_GRACEFUL_HARD_DEADLINE = 20
CELERY_GRACEFUL_SOFT_DEADLINE = 1.5
CELERY_GRACEFUL_DEFAULT_TASK = True
GRACEFUL_EXIT = "a setting of the project itself"

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("SECRET_KEY", "for an example only")
INSTALLED_APPS = ["orders"]
TIME_ZONE = "UTC"  # of what workers log, too
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", BASE_DIR / "db.sqlite3"),
    }
}

# CELERY_BROKER_URL and CELERY_RESULT_BACKEND in the environment win.
CELERY_BROKER_URL = "redis://localhost/0"
CELERY_RESULT_BACKEND = "redis://localhost/1"
CELERY_GRACEFUL_DEFAULT_TASK = True  # every task is a GracefulTask

"""A Django project: GracefulTask is the base of all tasks, on top of Celery's DjangoTask."""

from __future__ import annotations

import os
import time

import django
from celery import Celery, shared_task
from celery.contrib.django.task import DjangoTask
from django.db import transaction

import celery_graceful
from celery_graceful import Graceful, GracefulTask
from tests.apps import say

django.setup()

app = Celery("site", broker=os.environ.get("BROKER_URL"), backend=os.environ.get("RESULT_URL"))
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.broker_connection_retry_on_startup = True
Graceful(app)


class OwnBase(app.Task):
    abstract = True


class DjangoFirst(DjangoTask, GracefulTask):
    abstract = True


class GracefulFirst(GracefulTask, DjangoTask):
    abstract = True


def work(self, how):
    say("started", self.name, how)
    if "SECOND" not in os.environ:
        if how == "point":
            celery_graceful.sleep(60)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.02)
    with transaction.atomic():
        committed.delay_on_commit(self.name)
        self.apply_async_on_commit  # noqa: B018


@app.task(bind=True, name="default")
def default(self, how):
    work(self, how)


@shared_task(bind=True, name="shared")
def shared(self, how):
    work(self, how)


@app.task(bind=True, name="own_base", base=OwnBase)
def own_base(self, how):
    work(self, how)


@app.task(bind=True, name="django_first", base=DjangoFirst)
def django_first(self, how):
    work(self, how)


@app.task(bind=True, name="graceful_first", base=GracefulFirst)
def graceful_first(self, how):
    work(self, how)


@app.task(name="committed")
def committed(name):
    say("committed", name)

"""What an instrumentation of redis-py sees of what this package asks: Sentry's, as one of them."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import RedisDB

PROGRAM = """
import json, sys
import sentry_sdk
from celery import Celery
from sentry_sdk.integrations.redis import RedisIntegration
from celery_graceful import Graceful

seen = []

def note(event, hint):
    seen.extend(span["description"].split()[0] for span in event["spans"])

sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1", integrations=[RedisIntegration()], default_integrations=False,
    traces_sample_rate=1.0, before_send_transaction=note,
)
app = Celery("app", broker=sys.argv[1], backend=sys.argv[2])
if sys.argv[3] == "graceful":
    Graceful(app)
found = {}
for name, call in {
    "sent": lambda: app.send_task("task"),
    "kept": lambda: app.backend.store_result(sys.argv[3], 3, "SUCCESS"),
    "read": lambda: app.backend.get_task_meta(sys.argv[3])["result"],
}.items():
    with sentry_sdk.start_transaction(name=name):
        call()
    found[name] = list(seen)
    seen.clear()
assert app.backend.get_task_meta(sys.argv[3])["result"] == 3
print(json.dumps(found))
"""


def seen_by_sentry(db: RedisDB, kind: str) -> dict[str, list[str]]:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, db.url, db.backend_url, kind],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_what_is_packed_by_hand_has_no_span(redis_db: RedisDB) -> None:
    plain, graceful = (seen_by_sentry(redis_db, kind) for kind in ("plain", "graceful"))
    assert (plain["kept"], graceful["kept"]) == (["GET", "redis.pipeline.execute"], [])
    assert plain["sent"][-1] == "LPUSH"
    assert graceful["sent"][-1] in ("EVALSHA", "EVAL")  # with the bell, in one script
    assert plain["read"] == graceful["read"] == ["GET"]

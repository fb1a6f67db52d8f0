"""From a shell: the doctor looks at an app, and no worker is started."""

from __future__ import annotations

import json

from tests.conftest import RedisDB
from tests.support.broker import graceful_command


def test_the_doctor(redis_db: RedisDB) -> None:
    env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url, "GRACE": "30"}
    said = json.loads(graceful_command("tests.apps.export", "doctor", "--json", env=env))
    assert said["grace"]["source"] == "graceful_grace_period"
    assert said["counts"]["error"] == 0
    args = ("doctor", "--prestop", "25")
    told = graceful_command("tests.apps.export", *args, env=env, status=1)
    assert "CG106 error: --prestop = 25.0" in told

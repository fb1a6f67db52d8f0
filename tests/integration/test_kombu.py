"""kombu's own tests of its Redis transport, from its source distribution, against ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Those that do not apply, and why.
FAKE_CLIENT = "its fake client knows LPUSH alone; ours sends with a script that rings as well"
COUNTS = "counts the commands on a mock; ours rings the bell after them"
NOT_OURS = {
    "test_publish_batch_falls_back_when_redis_may_retry_timeouts": FAKE_CLIENT,
    "test_publish_batch_auto_flushes_at_max_size": FAKE_CLIENT,
    "test_publish_batch_flushes_before_multi_command_publication": FAKE_CLIENT,
    "test_publish_batch_uses_non_transactional_pipeline": COUNTS,
    "test_publish_batch_preserves_direct_routing_priority_and_order": COUNTS,
    "test_publish_batch_preserves_topic_routing": COUNTS,
    "test_publish_batch_includes_queue_expiry_commands": COUNTS,
    "test_publish_batch_flush_failure_is_not_retried_and_cleans_up": FAKE_CLIENT,
    "test_delivery_tag_is_uuid": FAKE_CLIENT,
    "test_put_priority": FAKE_CLIENT,
    "test_publish__get_redispyv3": FAKE_CLIENT,
    "test_publish__get_redispyv2": FAKE_CLIENT,
    "test_publish__consume": FAKE_CLIENT,
    "test_purge": FAKE_CLIENT,
    "test_register_with_event_loop__on_disconnect__loop_cleanup": "asks for the fault",
    "test_sentinel_with_ssl": "a subclass of the class that it asks for",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kombu_s_own_tests(tmp_path: Path) -> None:
    name = f"kombu=={version('kombu')}"
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "kombu"]
    fetched = subprocess.run([*argv, name], cwd=tmp_path, capture_output=True, text=True)
    if fetched.returncode:
        report = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        report(f"no source distribution of {name}: {fetched.stderr[-500:]}")
    (archive,) = tmp_path.glob("kombu-*.tar.gz")
    with tarfile.open(archive) as tar:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
        tar.extractall(tmp_path, **safely)
    (source,) = (path for path in tmp_path.glob("kombu-*") if path.is_dir())
    tests = "t/unit/transport/test_redis.py"
    names = re.findall(r"def (test_\w+)", (source / tests).read_text(encoding="utf-8"))
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.integration.kombu_plugin"),
            *("-p", "no:cacheprovider", "--tb=short", tests),
        ],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", ended.stdout, re.MULTILINE))
    assert failed == NOT_OURS.keys() & set(names), ended.stdout[-5000:]
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed
    assert int(passed[1]) > 0.9 * len(names) - len(failed)

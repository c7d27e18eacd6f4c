"""The job lines in a worker's log, and the hooks that are called for failed jobs."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance.rig import Rig

APP = {"SIDESTREAM_APP": "tests.acceptance.job_log_app:actions", "SIDESTREAM_CHILDREN": "1"}


def lines(rig: Rig, **wanted: object) -> list[dict[str, Any]]:
    """Return the log records, in JSON, that have these values."""
    found = [json.loads(line) for line in rig.log.read_text().splitlines() if line.startswith("{")]
    return [record for record in found if wanted.items() <= record.items()]


def start(rig: Rig, **variables: str) -> None:
    rig.start(**APP, SIDESTREAM_LOG_FORMAT="json", **variables)


def test_a_job_that_is_done_has_one_line_with_its_facts(rig: Rig) -> None:
    start(rig)
    job = rig.enqueue("shop.note", queue="default")
    direct = str(rig.jobs.enqueue_direct("shop.note"))
    rig.until(lambda: len(lines(rig, outcome="done")) == 2)
    for job_id in (job, direct):
        [line] = lines(rig, job_id=job_id, action="job_done")
        assert line["level"] == "info"
        assert (line["job_action"], line["queue"], line["attempt"]) == ("shop.note", "default", 1)
        assert 0 < line["duration"] < 20
        [own] = lines(rig, logger="shop", job_id=job_id)
        assert (own["message"], own["job_action"]) == ("a line of the job's own", "shop.note")


def test_a_failed_attempt_is_a_warning_with_traceback_and_a_failed_job_an_error(rig: Rig) -> None:
    start(rig)
    job = rig.enqueue("shop.fail")
    assert rig.ends(job).state == "failed"
    rig.until(lambda: lines(rig, action="job_failed"))
    attempts = lines(rig, job_id=job, outcome="failed attempt")
    assert [(line["level"], line["attempt"]) for line in attempts] == [("warning", 1), ("warning", 2)]
    assert all("LookupError: no such order" in line["traceback"] for line in attempts)
    [failed] = lines(rig, job_id=job, outcome="failed")
    assert (failed["level"], failed["attempt"], failed["error"]) == ("error", 2, "LookupError: no such order")


def test_crashes_limits_and_replaced_children_are_logged(rig: Rig) -> None:
    start(rig, SIDESTREAM_CHILD_MAX_JOBS="3")
    crashing, slow = rig.enqueue("shop.die"), rig.enqueue("shop.slow")
    assert rig.ends(crashing).state == rig.ends(slow).state == "failed"
    rig.until(lambda: len(lines(rig, action="job_failed")) == 2)
    assert [line["attempt"] for line in lines(rig, job_id=crashing, outcome="crashed", level="warning")] == [1, 2, 3]
    assert len(lines(rig, job_id=slow, outcome="timeout", level="warning")) == 1
    ended = [line["message"] for line in lines(rig, action="child_ended", level="warning")]
    assert sum("killed by SIGKILL" in message for message in ended) == 3
    assert any("hard limit" in message for message in ended)  # more often where it is not acquired in time
    for _ in range(4):
        rig.ends(rig.enqueue("shop.note"))
    rig.until(lambda: lines(rig, action="child_replaced"))


def test_jobs_that_are_taken_over_are_logged(rig: Rig) -> None:
    killed = rig.start(SIDESTREAM_LOG_FORMAT="json", SIDESTREAM_CHILDREN="1")
    job = rig.enqueue("wait", 600)
    rig.until(lambda: "started" in rig.events(job))
    family = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]
    for process in family:
        process.kill()
    killed.wait()
    start(rig)
    rig.until(lambda: lines(rig, action="jobs_taken_over"))
    [line] = lines(rig, action="jobs_taken_over")
    assert (line["level"], line["jobs"]) == ("warning", 1)
    assert f"-{killed.pid}-" in line["owner"]


def test_the_first_line_says_what_runs_where_without_passwords(rig: Rig) -> None:
    start(rig)
    [line] = lines(rig, action="worker_started")
    assert line["version"]
    assert line["redis"] == rig.settings.redis_url
    assert line["database"].startswith("postgresql://")
    assert line["queues"] == "default"
    assert "shop.note" in line["actions"]
    assert line["action_count"] == 6


def test_text_lines_name_the_job_of_its_own_lines(rig: Rig) -> None:
    rig.start(**APP)
    job = rig.enqueue("shop.note")
    rig.until(lambda: f"Job {job} shop.note: done after " in rig.log.read_text())
    [own] = [line for line in rig.log.read_text().splitlines() if "a line of the job's own" in line]
    assert own.endswith(f" INFO    [job {job} shop.note] a line of the job's own")


def test_what_actions_and_failure_hooks_print_arrives_in_a_file_once(rig: Rig) -> None:
    worker = rig.start(**APP, PYTHONUNBUFFERED="")
    for action in ("shop.print", "shop.give_up", "shop.die"):
        rig.ends(rig.enqueue(action))
    rig.until(lambda: rig.log.read_text().count("printed by a hook") == 2)
    rig.ends(rig.enqueue("shop.print"))
    assert rig.log.read_text().count("printed by a job\n") == 2, "each line at once: a child may be killed"
    worker.terminate()
    worker.wait(20)
    assert rig.log.read_text().count("printed at the start") == 1
    assert "the end of it" in rig.log.read_text()


def test_quiet_jobs_silences_every_line_about_a_jobs_end(rig: Rig) -> None:
    start(rig, SIDESTREAM_QUIET_JOBS="true")
    done, failed = rig.enqueue("shop.note"), rig.enqueue("shop.fail")
    rig.ends(done)
    rig.ends(failed)
    rig.until(lambda: lines(rig, message="hook called"))
    assert lines(rig, logger="sidestream.jobs") == []
    assert len(lines(rig, logger="shop", job_id=done)) == 1


def test_the_failure_hook_is_told_of_every_job_that_failed_however_it_ended(rig: Rig) -> None:
    told = Path(rig.log).with_name("told")
    told.touch()
    told.chmod(0o666)
    start(rig, TEST_HOOK_FILE=str(told))
    rows = [rig.enqueue(action) for action in ("shop.fail", "shop.give_up", "shop.die", "shop.slow")]
    direct = rig.jobs.enqueue_direct("shop.give_up")
    rig.until(lambda: len(told.read_text().splitlines()) == 5)
    found = sorted(told.read_text().splitlines())
    expected = [
        f"{rows[0]} shop.fail default 2 traceback LookupError: no such order",
        f"{rows[1]} shop.give_up default 1 traceback LookupError: gave up",
        f"{rows[2]} shop.die default 3 none It crashed: its process was killed by SIGKILL.",
        f"{rows[3]} shop.slow default 1 none It ran longer than its hard limit of 1 s and was killed.",
        f"{direct} shop.give_up default 1 traceback LookupError: gave up",
    ]
    assert found == sorted(expected)
    assert len(lines(rig, action="failure_hook_failed")) == 5, "a hook that raises keeps no other from being told"


class Sentry:
    """A server that takes what Sentry's would, on a port of its own."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.take(body)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def of_jobs(self) -> list[dict[str, Any]]:
        """The events about jobs; the broken hook's own error is reported too."""
        return [event for event in self.events if event.get("logger") is None]

    @property
    def dsn(self) -> str:
        return f"http://public@127.0.0.1:{self.server.server_address[1]}/1"

    def take(self, envelope: bytes) -> None:
        """Keep the events of an envelope: https://develop.sentry.dev/sdk/data-model/envelopes/."""
        parts = envelope.split(b"\n")
        for head, payload in zip(parts[1::2], parts[2::2], strict=False):
            if head and json.loads(head).get("type") == "event":
                self.events.append(json.loads(payload))


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    server = Sentry()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.mark.parametrize("every", [False, True])
def test_sentry_receives_the_exception_of_a_failed_job_with_its_facts(rig: Rig, sentry: Sentry, every: bool) -> None:
    here = {"TEST_SENTRY_DSN": sentry.dsn, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    start(rig, **here, **({"TEST_EVERY": "1"} if every else {}))
    failing = rig.enqueue("shop.fail")
    rig.until(lambda: len(sentry.of_jobs) == (2 if every else 1))  # before its process is killed by the next job
    crashing = rig.enqueue("shop.die")
    assert rig.ends(failing).state == rig.ends(crashing).state == "failed"
    rig.until(lambda: len(sentry.of_jobs) == (3 if every else 2))
    rig.workers[-1].terminate()
    rig.workers[-1].wait(30)
    errors = [event for event in sentry.of_jobs if event["tags"]["job.action"] == "shop.fail"]
    assert [event["tags"]["job.attempt"] for event in errors] == (["1", "2"] if every else ["2"])
    [crash] = [event for event in sentry.of_jobs if event["tags"]["job.action"] == "shop.die"]
    assert len(sentry.of_jobs) == len(errors) + 1
    exception = errors[-1]["exception"]["values"][-1]
    assert (exception["type"], exception["value"]) == ("LookupError", "no such order")
    assert exception["mechanism"]["type"] == "sidestream"
    assert exception["stacktrace"]["frames"][-1]["function"] == "fail"
    assert errors[-1]["transaction"] == "shop.fail"
    assert errors[-1]["contexts"]["job"] == {"id": failing, "action": "shop.fail", "queue": "default", "attempt": 2}
    assert crash["message"] == "Job shop.die has failed: It crashed: its process was killed by SIGKILL."
    assert (crash["level"], crash["tags"]["job.id"]) == ("error", str(crashing))

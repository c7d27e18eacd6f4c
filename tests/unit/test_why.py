"""The sentence that says why a job waits, as a table of cases."""

from __future__ import annotations

import ast
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from sidestream.admin.diagnosis import Code, diagnose
from sidestream.admin.diagnosis_text import _TEXTS, render
from sidestream.broker.protocol import Explanation, Place
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import direct_reference, row_reference
from sidestream.job.rules import Limit, Pause
from sidestream.job.states import State
from sidestream.store.diagnosis import JobDiagnosis
from sidestream.store.job_row import JobRow
from sidestream.store.rules import Entry

ADDON_MESSAGES = Path(__file__).parents[2] / "addons/sidestream/messages.py"
NOW = datetime(2030, 1, 2, 12, tzinfo=UTC)
NOON, ONE = "2030-01-02 12:00:00 UTC", "2030-01-02 13:00:00 UTC"
ONE_MS = int((NOW + timedelta(hours=1)).timestamp() * 1000)
JOB = JobRow(7, "shop.ship", "mail", "k", NOW, group="g", limit="courier:7")
READY = JobDiagnosis(JOB, State.PENDING, False, 0, None, None, None, None, False, False, None, None, NOW, None)
EARLY = replace(READY, early=True, job=replace(JOB, run_at=NOW + timedelta(hours=1)))
HOLDERS = tuple(row_reference(b"database", n, "a", None).pack() for n in (1, 2, 3, 4, 5))
DIRECT = direct_reference(UUID(int=1), "a", None).pack()
WORKERS = [["default"], ["mail"]]


def why(
    facts: JobDiagnosis,
    entries: list[Entry],
    explanation: Explanation | None,
    workers: list[list[str]] | None,
    busy: tuple[int, int] | None = None,
) -> str:
    return render("Job 7", diagnose(facts, entries, explanation, workers, busy))


def pause(what: Pause, **options: str | None) -> Entry:
    scope = "queue" if what.queue else "action" if what.action else "group"
    name = what.queue or what.action or ""
    return Entry("pause", scope, name, what.group or "", None, None, what, None, None, options.get("note"),
                 options.get("by"), NOW)  # fmt: skip


def limit(scope: str, name: str, value: Limit) -> Entry:
    return Entry("limit", scope, name, "", value, None, None, None, None, None, None, NOW)


OTHER = pause(Pause(queue="default"))
FROM_ROW: list[tuple[JobDiagnosis, list[Entry], str]] = [
    (replace(READY, state=State.DONE, ended_at=NOW), [], f"does not wait: it was done at {NOON}."),
    (
        replace(READY, state=State.FAILED, ended_at=NOW, error="Boom.\nmore"),
        [],
        f"does not wait: it failed for good at {NOON}, and its last error was: Boom.",
    ),
    (
        replace(READY, state=State.CANCELLED, ended_at=NOW, reason=Reason(ReasonCode.DUPLICATE, {"of": 3})),
        [],
        f"does not wait: it was cancelled at {NOON}, because: duplicate of job 3.",
    ),
    (replace(READY, state=State.CANCELLED), [], "does not wait: it was cancelled."),
    (
        replace(READY, cancelling=True),
        [],
        "is being cancelled: a person asked for it, and its worker has not carried it out yet.",
    ),
    (
        replace(READY, expires_at=NOW),
        [],
        f"was to be started by {NOON} and was not: it is about to be cancelled.",
    ),
    (replace(READY, started_by="w1", started_at=NOW, expires_at=NOW), [], f"runs on w1 since {NOON}."),
    (
        replace(EARLY, running=True),
        [],
        "runs, or its session in PostgreSQL has not ended: it holds the row or the key.",
    ),
    (EARLY, [], f"is scheduled for {ONE}."),
    (
        replace(EARLY, job=replace(EARLY.job, attempts=3), forgiven=1, error="Boom"),
        [],
        f"failed 2 times and is tried again at {ONE}, and its last error was: Boom.",
    ),
    (
        replace(EARLY, job=replace(EARLY.job, attempts=1), error=None),
        [],
        f"failed once and is tried again at {ONE}, and its last error was: not told.",
    ),
    (
        replace(
            EARLY,
            expires_at=NOW,
            job=replace(EARLY.job, snoozes=1),
            reason=Reason(ReasonCode.SNOOZED, {"seconds": 60, "message": "no stock"}),
        ),
        [],
        f"snoozed itself until {ONE}, because: no stock.",
    ),
    (
        READY,
        [OTHER, pause(Pause(queue="mail"), by="Ann", note="move")],
        f"waits because the queue 'mail' was paused by Ann at {NOON} (move).",
    ),
    (READY, [pause(Pause(action="shop.ship"))], f"waits because the action 'shop.ship' was paused at {NOON}."),
    (READY, [pause(Pause(group="g"))], f"waits because the group 'g' was paused at {NOON}."),
    (
        READY,
        [pause(Pause(action="shop.ship", group="g"), by="Bob")],
        f"waits because the action 'shop.ship' of the group 'g' was paused by Bob at {NOON}.",
    ),
    (
        replace(READY, before=replace(JOB, id=3, action="shop.pay")),
        [OTHER],
        "waits behind job 3 (shop.pay), which has the same key 'k' and comes first.",
    ),
    (
        replace(READY, suspect=True),
        [],
        "waits until a worker can run it alone, because its worker died repeatedly while it ran.",
    ),
]


@pytest.mark.parametrize(("facts", "entries", "sentence"), FROM_ROW)
def test_reasons_from_the_row_and_the_rules(facts: JobDiagnosis, entries: list[Entry], sentence: str) -> None:
    for explanation in (None, Explanation(Place.READY)):
        assert why(facts, entries, explanation, WORKERS) == f"Job 7 {sentence}"


FROM_BROKER: list[tuple[Explanation | None, list[Entry], list[list[str]] | None, str]] = [
    (None, [], None, "is ready, but Redis does not answer: a worker takes it from PostgreSQL within seconds."),
    (Explanation(Place.READY), [], [["default"]], "waits because no worker that is alive serves the queue 'mail'."),
    (
        Explanation(Place.READY),
        [],
        None,
        "is the next of its group and priority in the queue 'mail' and waits for a free worker.",
    ),
    (
        Explanation(Place.READY, rank=12),
        [],
        WORKERS,
        "waits for a free worker behind 12 other jobs of its group and priority in the queue 'mail'.",
    ),
    (Explanation(Place.LEASED, worker="w1"), [], [], "is with the worker w1, which runs it or is about to."),
    (
        Explanation(Place.UNROUTED),
        [],
        WORKERS,
        "waits until a worker is started that knows the action 'shop.ship'.",
    ),
    (
        Explanation(Place.PAUSED, "action of group"),
        [],
        WORKERS,
        "is set aside because its action of group was paused; it comes back by itself within seconds.",
    ),
    (
        Explanation(Place.BEHIND_KEY, holders=HOLDERS[2:3]),
        [],
        WORKERS,
        "waits behind job 3 with the same key 'k'.",
    ),
    (Explanation(Place.BEHIND_KEY), [], WORKERS, "waits behind another job with the same key 'k'."),
    (Explanation(Place.DELAYED, until_ms=ONE_MS), [], WORKERS, f"was released and waits until {ONE}."),
    (
        Explanation(Place.NOWHERE),
        [],
        WORKERS,
        "is pending and not published yet; the reconciler publishes it within seconds.",
    ),
    (
        Explanation(Place.LIMITED, "key", HOLDERS),
        [limit("key", "courier", Limit(5))],
        WORKERS,
        "waits for the limit of 5 of the limit key 'courier:7', which is used up by job 1, job 2, job 3 and 2 more.",
    ),
    (
        Explanation(Place.LIMITED, "global", (DIRECT, b"\xff")),
        [limit("global", "", Limit(2))],
        WORKERS,
        (
            "waits for the limit of 2 of everything, which is used up by the direct job "
            "00000000-0000-0000-0000-000000000001 and a job of another release."
        ),
    ),
    (
        Explanation(Place.LIMITED, "action", until_ms=ONE_MS),
        [limit("action", "shop.ship", Limit(None, 0.5))],
        WORKERS,
        f"waits for the rate of 0.5 a second of the action 'shop.ship'; its next turn is at {ONE}.",
    ),
    (
        Explanation(Place.LIMITED, "queue"),
        [limit("queue", "mail", Limit(0))],
        WORKERS,
        "waits because the limit of the queue 'mail' is 0: nothing of it may start.",
    ),
]


@pytest.mark.parametrize(("explanation", "entries", "workers", "sentence"), FROM_BROKER)
def test_reasons_from_the_broker(
    explanation: Explanation | None, entries: list[Entry], workers: list[list[str]] | None, sentence: str
) -> None:
    assert why(READY, entries, explanation, workers) == f"Job 7 {sentence}"


def test_a_pause_does_not_stop_what_runs() -> None:
    told = why(READY, [pause(Pause(queue="mail"))], Explanation(Place.LEASED, worker="w1"), WORKERS)
    assert told == "Job 7 is with the worker w1, which runs it or is about to."


RETRY = replace(READY, job=replace(JOB, attempts=1, run_at=NOW), error="Boom.\nmore")
PAST_MS = int((NOW - timedelta(minutes=5)).timestamp() * 1000)
OVERDUE: list[tuple[Explanation, tuple[int, int] | None, str]] = [
    (Explanation(Place.DELAYED, until_ms=PAST_MS), (2, 2), "waits for a free worker (2 of 2 busy); last error: Boom."),
    (Explanation(Place.DELAYED, until_ms=PAST_MS), None, "waits for a free worker; last error: Boom."),
    (
        Explanation(Place.READY),
        (1, 2),
        (
            "is the next of its group and priority in the queue 'mail' and waits for a free worker (1 of 2 busy); "
            "last error: Boom."
        ),
    ),
    (
        Explanation(Place.READY, rank=3),
        (2, 2),
        (
            "waits for a free worker (2 of 2 busy) behind 3 other jobs of its group and priority in the queue 'mail'; "
            "last error: Boom."
        ),
    ),
]


@pytest.mark.parametrize(("explanation", "busy", "sentence"), OVERDUE)
def test_an_overdue_retry_names_no_past_moment(
    explanation: Explanation, busy: tuple[int, int] | None, sentence: str
) -> None:
    assert why(RETRY, [], explanation, WORKERS, busy) == f"Job 7 {sentence}"


def test_an_error_is_shown_without_its_secrets() -> None:
    failed = replace(READY, state=State.FAILED, ended_at=NOW, error="GET /?token=hunter2 failed")
    assert why(failed, [], None, None).endswith("its last error was: GET /?token=*** failed.")


def test_the_command_line_and_the_addon_render_every_code() -> None:
    assert list(_TEXTS) == list(Code)
    tree = ast.parse(ADDON_MESSAGES.read_text())  # to import it takes Odoo
    [table] = [
        one.value for one in tree.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "DIAGNOSES"
    ]
    assert isinstance(table, ast.Dict)
    assert [ast.literal_eval(key) for key in table.keys if key is not None] == list(Code)

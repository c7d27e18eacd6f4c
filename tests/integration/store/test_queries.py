"""The read side and retention: what they return, and that they stay quick among many rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidestream.broker.protocol import CHUNK
from sidestream.job.job import Job
from sidestream.job.states import State
from sidestream.store import acquire, attempts, control, outcomes, queries, retention
from tests.integration.store.sessions import Session, due_jobs

MANY = 200_000
DAY = 86_400


def fill(session: Session, count: int, columns: str = "", values: str = "") -> None:
    """Insert ``count`` pending rows without a round trip each; ``values`` may use the number ``n``."""
    session.execute(
        f"INSERT INTO sidestream_job (action, queue, payload{columns}) "
        f"SELECT 'test.act', 'default', '{{}}'{values} FROM generate_series(1, {count}) AS n"
    )


def ids(found: list[Any]) -> list[int]:
    return [job.id for job in found]


class Counting:
    """A cursor that counts the blocks that its statements touch: the same on a busy machine as on an idle one."""

    def __init__(self, session: Session) -> None:
        self._cur = session.cur
        self.blocks = 0

    def execute(self, statement: str, parameters: dict[str, Any] | None = None) -> None:
        self._cur.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        [plan] = self._cur.fetchone()[0]
        self.blocks += plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        self._cur.execute(statement, parameters)

    @property
    def description(self) -> Any:
        return self._cur.description

    def fetchone(self) -> Any:
        return self._cur.fetchone()

    def fetchall(self) -> Any:
        return self._cur.fetchall()


def test_due_jobs_gives_the_oldest_of_the_queues_first(a: Session) -> None:
    now = datetime.now(UTC)

    def due(minutes: int, **options: Any) -> int:
        return a.one(run_at=now - timedelta(minutes=minutes), **options)

    third, first, second, other = due(1), due(3, queue="q2"), due(2), due(9, queue="q3")
    scheduled = due(-5)
    running = due(0)
    a.hold(running)
    a.rollback()
    assert ids(due_jobs(a.cur, ["default", "q2", "q2"], 10)) == [first, second, third, running]
    assert ids(due_jobs(a.cur, ["default", "q2"], 2, excluded=[first])) == [second, third]
    assert ids(due_jobs(a.cur, ["q3"], 10)) == [other]
    assert due_jobs(a.cur, [], 10) == []
    assert scheduled not in ids(due_jobs(a.cur, ["default"], 10))


def test_due_jobs_shows_the_head_of_a_key_alone(a: Session) -> None:
    head, behind, free = a.one(key="k"), a.one(key="k"), a.one()
    assert ids(due_jobs(a.cur, ["default"], 10)) == [head, free]
    assert outcomes.fail_attempt(a.cur, head, 0, 60, "It failed.").applied
    assert ids(due_jobs(a.cur, ["default"], 10)) == [free]
    assert outcomes.fail_job(a.cur, head, 1, "It can never work.").applied
    assert ids(due_jobs(a.cur, ["default"], 10)) == [behind, free]


def test_unpublished_leaves_out_the_bits_that_are_set(a: Session) -> None:
    assert queries.CHUNK == CHUNK
    jobs = ids(a.insert(*(Job("test.act") for _ in range(40))))
    known = bytearray(3)  # shorter than the chunk, as Redis gives it
    for job in (1, 7, 8, 9, 15, 16, 23):
        known[job // 8] |= 0x80 >> job % 8
    missing = [job for job in jobs if job not in (1, 7, 8, 9, 15, 16, 23)]
    assert ids(queries.unpublished(a.cur, 0, bytes(known))) == missing
    assert ids(queries.unpublished(a.cur, 0, bytes(known), after_id=20, limit=3)) == [21, 22, 24]
    a.done(2)
    assert ids(queries.unpublished(a.cur, 0, bytes(known), limit=2)) == [3, 4]
    assert ids(queries.unpublished(a.cur, 0, b"")) == [1, *range(3, 41)]
    assert queries.unpublished(a.cur, 1, b"") == []


def test_chunks_begin_at_multiples_of_their_size(a: Session) -> None:
    edges = [1, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 7 * CHUNK + 3]
    for job in edges:
        fill(a, 1, ", id", f", {job}")
    assert queries.pending_chunks(a.cur) == [0, 1, 7]
    assert [ids(queries.unpublished(a.cur, chunk, b"")) for chunk in (0, 1, 2, 7)] == [
        [1, CHUNK - 1],
        [CHUNK, 2 * CHUNK - 1],
        [],
        [7 * CHUNK + 3],
    ]
    known = bytearray(CHUNK // 8)
    known[-1] = 1  # the chunk's last id
    assert ids(queries.unpublished(a.cur, 1, bytes(known))) == [CHUNK]
    a.execute("UPDATE sidestream_job SET state = 'done'")
    assert queries.pending_chunks(a.cur) == []


def test_what_is_due_far_ahead_stays_in_the_rows(a: Session) -> None:
    now = datetime.now(UTC)
    near, far = a.one(run_at=now + timedelta(minutes=10)), a.one(run_at=now + timedelta(minutes=20))
    until = now + timedelta(minutes=15)
    assert ids(queries.unpublished(a.cur, 0, b"", 0, until)) == [near]
    assert ids(queries.unpublished(a.cur, 0, b"")) == [near, far]


def test_overdue_pages_by_id_over_all_queues(a: Session) -> None:
    old = datetime.now(UTC) - timedelta(minutes=1)
    late = [a.one(run_at=old, queue=queue) for queue in ("a", "b", "a", "c")]
    fresh, done = a.one(), a.one(run_at=old)
    a.done(done)
    assert ids(queries.overdue(a.cur, 30)) == late
    assert ids(queries.overdue(a.cur, 30, 0, 3)) == late[:3]
    assert ids(queries.overdue(a.cur, 30, late[2], 3)) == late[3:]
    assert queries.overdue(a.cur, 90) == []
    assert fresh in ids(queries.overdue(a.cur, -1))


def test_overdue_finds_more_than_a_few_as_well(a: Session) -> None:
    fill(a, queries.FEW + 10, ", run_at", ", timestamp '2020-01-01' + n * interval '1 second'")
    found = queries.overdue(a.cur, 30, 100, 50)
    assert ids(found) == list(range(101, 151))
    assert found[0].due_ms == int(datetime(2020, 1, 1, 0, 1, 41, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("driver", ["psycopg"], indirect=True)
def test_among_many_rows_every_step_stays_small(a: Session) -> None:
    fill(a, MANY, ", state, ended_at", ", 'done', now() AT TIME ZONE 'UTC'")
    fill(a, MANY, ", run_at", ", now() + interval '1 day'")
    fill(a, 10_000, ", run_at, key", ", now() - interval '1 hour', 'hot'")
    fill(a, 100)
    a.execute("ANALYZE sidestream_job")
    soon = datetime.now(UTC) + timedelta(minutes=15)
    last = 2 * MANY + 10_000
    steps: dict[str, Callable[[Counting], Any]] = {
        "candidates": lambda cur: due_jobs(cur, ["default"], 20),
        "pending_chunks": lambda cur: queries.pending_chunks(cur),
        "unpublished, newest chunk": lambda cur: queries.unpublished(cur, last // CHUNK, b""),
        "unpublished, nothing due": lambda cur: queries.unpublished(cur, MANY // CHUNK + 1, b"", 0, soon),
        "overdue, many": lambda cur: queries.overdue(cur, 60),
        "overdue, none": lambda cur: queries.overdue(cur, 7200),
        "page": lambda cur: queries.page(cur),
        "page, failed": lambda cur: queries.page(cur, "failed"),
        "prune": lambda cur: retention.prune(cur, 30 * DAY, None, 1000),
        "acquire, last of a long key": lambda cur: acquire.acquire_job(cur, last),
        "acquire, free": lambda cur: acquire.acquire_job(cur, last + 1),
    }
    touched = {}
    for name, step in steps.items():
        counting = Counting(a)
        step(counting)
        touched[name] = counting.blocks
    whole = a.value("SELECT pg_relation_size('sidestream_job') / 8192")
    assert max(touched.values()) < whole / 5, f"{whole}: {touched}"
    assert max(touched["acquire, free"], touched["overdue, none"], touched["page, failed"]) < 40, str(touched)


def test_a_page_is_narrowed_down_and_goes_on(a: Session, b: Session) -> None:
    jobs = [a.one(queue="a" if number % 2 else "b", key="k") for number in range(6)]
    a.done(jobs[0])
    assert outcomes.fail_job(a.cur, jobs[1], 0, "It can never work.").applied
    newest_first = jobs[::-1]
    assert ids(queries.page(a.cur)) == newest_first
    assert ids(queries.page(a.cur, limit=2)) == newest_first[:2]
    assert ids(queries.page(a.cur, before_id=newest_first[1], limit=2)) == newest_first[2:4]
    assert ids(queries.page(a.cur, "pending", "a")) == [jobs[5], jobs[3]]
    [dead] = queries.page(a.cur, State.FAILED)
    assert (dead.id, dead.state, dead.error, dead.attempts) == (jobs[1], State.FAILED, "It can never work.", 1)
    with pytest.raises(ValueError, match="asleep"):
        queries.page(a.cur, "asleep")
    a.hold(jobs[2])
    assert control.cancel(b.cur, jobs[2]).locked
    found = queries.job(b.cur, jobs[2])
    assert found is not None
    assert (found[0].cancelling, found[0].due) == (True, True)


def test_a_job_is_shown_with_its_payload_and_its_attempts(a: Session) -> None:
    [stored] = a.insert(Job("test.act", (1,), key="k"))
    attempts.record(a.cur, stored.id, "host-1", 2, "failed", "why")
    found = queries.job(a.cur, stored.id)
    assert found is not None
    row, payload, [event] = found
    assert (row.id, row.key, row.state, row.uuid) == (stored.id, "k", State.PENDING, None)
    assert payload == '{"v":1,"args":[1],"kwargs":{}}'
    assert (event.event, event.slot, event.detail) == ("failed", 2, "why")
    assert queries.job(a.cur, 10_000) is None


def age(session: Session, job: int, days: float) -> None:
    session.execute(
        "UPDATE sidestream_job SET created_at = created_at - %(d)s::float8 * interval '1 day', "
        "ended_at = ended_at - %(d)s::float8 * interval '1 day' WHERE id = %(id)s",
        {"d": days, "id": job},
    )


def test_prune_takes_what_ended_long_ago_with_its_attempts(a: Session, b: Session) -> None:
    done, cancelled, dead, still_open, locked, young = (a.one() for _ in range(6))
    for job in (done, locked, young):
        a.done(job)
    assert control.cancel(a.cur, cancelled).applied
    assert outcomes.fail_job(a.cur, dead, 0, "It can never work.").applied
    for job in (done, cancelled, dead, still_open, locked):
        age(a, job, 31)
        attempts.record(a.cur, job, "host-1", 0, "started")
    a.execute("INSERT INTO sidestream_control (job_id, request) VALUES (%(id)s, 'cancel')", {"id": cancelled})
    b.begin()
    b.execute("SELECT FROM sidestream_job WHERE id = %(id)s FOR KEY SHARE", {"id": locked})
    assert retention.prune(a.cur, 30 * DAY, None, 100) == 2
    b.rollback()
    left = "SELECT id FROM sidestream_job ORDER BY id"
    assert [job for (job,) in a.all(left)] == [dead, still_open, locked, young]
    assert [job for (job,) in a.all("SELECT job_id FROM sidestream_attempt ORDER BY job_id")] == [
        dead,
        still_open,
        locked,
    ]
    assert a.value("SELECT count(*) FROM sidestream_control") == 0
    assert retention.prune(a.cur, 90 * DAY, 30 * DAY, 100) == 1
    assert retention.prune(a.cur, 30 * DAY, None, 100) == 1
    assert [job for (job,) in a.all(left)] == [still_open, young]


def test_prune_is_bounded(a: Session) -> None:
    fill(a, 25, ", state, ended_at, created_at", ", 'done', '2020-01-01', '2020-01-01'")
    assert [retention.prune(a.cur, 30 * DAY, None, 10) for _ in range(4)] == [10, 10, 5, 0]


def test_prune_of_an_empty_table_is_nothing(a: Session) -> None:
    assert retention.prune(a.cur, 30 * DAY, 30 * DAY, 10) == 0

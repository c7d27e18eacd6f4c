"""Test that searches of the list of jobs are fast with a million jobs."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.odoo.conftest import Shop

pytestmark = pytest.mark.timeout(400)

JOBS = 1_000_000
BOUND = 0.2
"""Seconds for the page and the count of one search, with the request."""
TRIES = 5
"""Only the fastest attempt counts, because other programs use the machine."""

FILL = """
    INSERT INTO sidestream_job (action, queue, payload, state, run_at, created_at, started_at, ended_at, user_id,
        company_id, context, key, error, attempts)
    SELECT 'chaos.probe._send_' || i %% 40, 'default', '{"v":1,"args":[[1]],"kwargs":{}}', x.state,
        CASE WHEN x.state = 'pending' THEN now() AT TIME ZONE 'UTC' + interval '30 days' ELSE x.at END, x.at, x.at,
        CASE WHEN x.state <> 'pending' THEN x.at END, %(user)s + (i %% 3 = 0)::integer, 1, '{"lang":"en_US"}',
        CASE WHEN i %% 2 = 0 THEN 'order:' || i END,
        CASE WHEN i %% 100 = 1 THEN 'ValueError: no stock of ' || i END, CASE WHEN i %% 100 = 1 THEN 5 ELSE 0 END
    FROM generate_series(1, %(jobs)s) i CROSS JOIN LATERAL (
        SELECT now() AT TIME ZONE 'UTC' - interval '20 days' + i * interval '1.5 s' AS at,
        CASE WHEN i %% 100 = 1 THEN 'failed' WHEN i %% 50 = 2 THEN 'pending' ELSE 'done' END AS state) x"""
LINK = """
    INSERT INTO sidestream_job_record (model, record_id, job_id)
    SELECT 'res.partner', %(partner)s + i %% 200000, j.id
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS i FROM sidestream_job) j
    WHERE i %% 5 < 2 OR i > 990000"""

SEARCHES: dict[str, list[Any]] = {
    "nothing": [],
    "name": [["name", "ilike", "send 7"]],
    "a name that no job has": [["name", "ilike", "no such thing"]],
    "an exact name": [["name", "=", "Send 7"]],
    "record is not set": [["records", "=", False]],
    "record is set": [["records", "!=", False]],
    "record": [["records", "ilike", "My Company"]],
    "a record that no job has": [["records", "ilike", "no such record"]],
    "not of a record": [["records", "not ilike", "no such record"]],
    "number": [["id", "=", 7]],
    "error": ["&", ["attempts", ">", 0], ["error", "ilike", "no stock of 77"]],
    "an error that no job has": ["&", ["attempts", ">", 0], ["error", "ilike", "no such error"]],
    "user": ["|", ["user_id", "ilike", "admin"], ["requested_by", "ilike", "admin"]],
    "a user without jobs": ["|", ["user_id", "ilike", "public"], ["requested_by", "ilike", "public"]],
    "mine": ["|", ["user_id", "=", 2], ["requested_by", "=", 2]],
    "queue": ["&", ["state", "=", "pending"], ["queue", "=", "default"]],
    "a queue without jobs": ["&", ["state", "=", "pending"], ["queue", "=", "other"]],
    "key": ["&", ["state", "=", "pending"], ["key", "=", "order:2"]],
    "pending": [["state", "=", "pending"]],
    "failed": [["state", "=", "failed"]],
    "done": [["state", "=", "done"]],
    "cancelled": [["state", "=", "cancelled"]],
    "pending or failed": [["state", "in", ["pending", "failed"]]],
    "failed at least once": [["attempts", ">", 0]],
    "requested last month": ["&", ["created_at", ">=", "2020-01-01"], ["created_at", "<", "2020-02-01"]],
}


def test_every_search_of_a_million_jobs_is_answered_at_once(shop: Shop) -> None:
    fill(shop)
    took = {name: seconds(shop, domain) for name, domain in SEARCHES.items()}
    for name, best in took.items():
        print(f"{best * 1000:6.0f} ms  {name}")
    slow = {name: f"{best * 1000:.0f} ms" for name, best in took.items() if best > BOUND}
    assert not slow, f"slower than {BOUND * 1000:.0f} ms: {slow}"


def fill(shop: Shop) -> None:
    """Insert a million jobs, and create the indexes afterwards, which is faster."""
    with shop.world.connect() as connection:
        [(user,)] = connection.execute("SELECT min(id) FROM res_users WHERE login = 'admin'").fetchall()
        [(partner,)] = connection.execute("SELECT min(id) FROM res_partner").fetchall()
        indexes = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename IN ('sidestream_job', 'sidestream_job_record')"
            " AND indexname NOT LIKE '%pkey'"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        connection.execute(FILL, {"jobs": JOBS, "user": user})
        connection.execute(LINK, {"partner": partner})
        for _, definition in indexes:
            connection.execute(definition)
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM (ANALYZE) sidestream_job, sidestream_job_record")


def seconds(shop: Shop, domain: list[Any]) -> float:
    """Return the shortest time for the list's first page and count."""
    best = float("inf")
    for _ in range(TRIES):
        began = time.monotonic()
        found = shop.user.call(
            "sidestream.job", "web_search_read", domain, {"id": {}, "state": {}}, limit=80, count_limit=10001
        )
        best = min(best, time.monotonic() - began)
        assert found["length"] >= 0
        if best <= BOUND / 2:
            break
    return best

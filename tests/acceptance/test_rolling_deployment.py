"""Two releases of Sidestream side by side: newer tables, and contents of Redis in another format."""

from __future__ import annotations

import psycopg

from sidestream import Jobs
from sidestream.broker.redis.keys import PREFIX
from sidestream.store import schema
from tests.acceptance.rig import Rig
from tests.support.servers import RedisServer

META = f"{PREFIX}meta"


def upgrade_tables(rig: Rig, *, usable_from: int) -> None:
    """What the next release would make of the tables, while everybody of this one goes on."""
    with rig.look.transaction():
        rig.look.execute("ALTER TABLE sidestream_job ADD COLUMN colour text, ADD COLUMN depth integer DEFAULT 3")
        rig.look.execute(
            "UPDATE sidestream_meta SET version = %s, usable_from = %s", (schema.SCHEMA_VERSION + 1, usable_from)
        )


def test_enqueuers_and_workers_go_on_with_newer_tables(rig: Rig) -> None:
    rig.start()
    before = rig.enqueue("note", "before")
    assert rig.ends(before).state == "done"
    upgrade_tables(rig, usable_from=schema.SCHEMA_VERSION)
    assert rig.ends(rig.enqueue("note", "same processes")).state == "done"
    with (
        psycopg.connect(rig.dsn) as connection,
        Jobs(rig.settings) as jobs,
        jobs.transaction(connection) as transaction,
    ):
        job = transaction.enqueue("note", ("a new process",))
    assert rig.ends(job).state == "done"
    rig.workers[-1].terminate()
    rig.workers[-1].wait(20)
    rig.start()
    assert rig.ends(rig.enqueue("note", "a new worker")).state == "done"


def test_a_worker_waits_while_redis_holds_another_format(rig: Rig, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.hset(META, mapping={"gen": "1", "token": "1", "format": "99"})
        rig.start()
        job = rig.enqueue("note", "waits")
        rig.until(lambda: "contents of format 99" in rig.log.read_text())
        assert client.hgetall(META) == {b"gen": b"1", b"token": b"1", b"format": b"99"}, "left as it was"
        assert rig.job(job).state == "pending"
        client.flushall()
    assert rig.ends(job).state == "done"


def test_a_running_worker_waits_when_redis_gets_another_format(rig: Rig, redis_server: RedisServer) -> None:
    rig.start()
    assert rig.ends(rig.enqueue("note", "before")).state == "done"
    with redis_server.client() as client:
        client.hset(META, "format", "99")
        job = rig.enqueue("note", "waits")
        rig.until(lambda: "contents of format 99" in rig.log.read_text())
        assert rig.job(job).state == "pending"
        client.flushall()
    assert rig.ends(job).state == "done"

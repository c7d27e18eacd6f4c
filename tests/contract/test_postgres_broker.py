"""What only the PostgreSQL broker meets."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from sidestream.broker.postgres.broker import PostgresBroker
from sidestream.errors import BrokerUnavailable, BrokerUnsuitable, CapabilityMissing, StoreUnavailable
from tests.contract.benches import PostgresBench
from tests.support.broker_contract import claim, direct, ids, row
from tests.support.servers import PostgresServer


@pytest.fixture
def own(database: str) -> Iterator[PostgresBench]:
    bench = PostgresBench(database)
    yield bench
    bench.close()


def test_it_comes_back_after_a_restart(own: PostgresBench, postgres: PostgresServer) -> None:
    own.put([row(own, 1), row(own, 2)])
    assert ids(claim(own, 1)) == [1]
    postgres.restart()
    with pytest.raises(BrokerUnavailable, match="PostgreSQL"):
        claim(own, 1)
    assert ids(claim(own, 1)) == [2], "what this process holds is still left out"
    own.connection.close()


def test_nobody_there(own: PostgresBench) -> None:
    def connect() -> psycopg.Connection[object]:
        raise StoreUnavailable("PostgreSQL does not answer (connecting).")

    broker = PostgresBroker(connect, own.identity)
    with pytest.raises(BrokerUnavailable, match="connecting"):
        broker.claim("w1", [f"{own.database.hex()}:default"], free=1)


def test_tables_that_are_gone(own: PostgresBench) -> None:
    own.connection.execute("ALTER TABLE sidestream_job RENAME TO other")
    with pytest.raises(BrokerUnsuitable, match="db check"):
        claim(own)


def test_another_database_behind_the_address(own: PostgresBench) -> None:
    own.connection.execute("UPDATE sidestream_meta SET database_uuid = gen_random_uuid()")
    with pytest.raises(BrokerUnsuitable, match="restart the worker"):
        claim(own)


def test_lanes_of_other_databases_are_not_served(own: PostgresBench) -> None:
    own.put([row(own, 1)])
    assert own.broker.claim("w1", [f"{bytes(8).hex()}:default"], free=1) == []


def test_what_it_does_not_do(own: PostgresBench) -> None:
    with pytest.raises(CapabilityMissing, match="direct"):
        own.broker.publish([direct(own)])
    with pytest.raises(CapabilityMissing, match="published"):
        own.broker.published(own.database, 0)
    own.put([row(own, 1)])
    (one,) = claim(own)
    with pytest.raises(CapabilityMissing, match="failed"):
        own.broker.fail(one, "no")

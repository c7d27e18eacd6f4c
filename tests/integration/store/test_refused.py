"""A connection that PostgreSQL refuses is answered with what to correct, not with "check that it runs"."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from sidestream.errors import StoreUnavailable
from sidestream.store import adapter
from tests.support.servers import PostgresServer

REFUSALS = [
    ("postgresql://stranger@127.0.0.1:{port}/postgres", 'role "stranger" does not exist; name a role that exists'),
    ("postgresql://stranger@localhost:{port}/postgres", 'role "stranger" does not exist; name a role that exists'),
    ("postgresql://postgres@127.0.0.1:{port}/nowhere", 'database "nowhere" does not exist; create it'),
]


@pytest.mark.parametrize(("url", "said"), REFUSALS)
def test_what_the_server_refused_is_said(postgres: PostgresServer, url: str, said: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        adapter.connect(url.format(port=postgres.port), "test", autocommit=True).close()
    assert said in str(caught.value)
    assert "check that it runs" not in str(caught.value)


def test_a_server_that_refuses_to_authenticate(tmp_path: Path) -> None:
    with PostgresServer(fsync=False) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE somebody LOGIN PASSWORD 'right'")
        (server.data / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhost all somebody 127.0.0.1/32 scram-sha-256\n"
        )
        server.restart()
        with pytest.raises(StoreUnavailable, match="correct the role and password in the database URL"):
            adapter.connect(
                f"postgresql://somebody:wrong@127.0.0.1:{server.port}/postgres", "test", autocommit=True
            ).close()


def test_a_server_that_is_not_there_is_to_be_checked(postgres: PostgresServer) -> None:
    port = postgres.port
    postgres.stop()
    with pytest.raises(StoreUnavailable, match="check that it runs"):
        adapter.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", "test", autocommit=True).close()

"""The Redis rights in docs/howto/worker.md suffice for everything that the page claims."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Run, answer
from tests.acceptance.rig import Rig, open_folder
from tests.support.servers import RedisServer, has_redis7

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "worker.md").read_text()


def documented() -> list[str]:
    """Return the words of the page's ACL line."""
    [line] = re.findall(r"^```acl\n(ACL SETUSER .*)\n```", PAGE, re.MULTILINE)
    assert isinstance(line, str)
    return line.replace("PASSWORD", "secret").split()


@pytest.fixture(params=["valkey", "redis7"])
def limited(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, str]]:
    """A server, and the URL of a user with the documented rights and no others."""
    if request.param == "redis7" and not has_redis7():
        pytest.skip("Redis 7.0 is not there; make setup says why")
    with RedisServer(binary=request.param) as server, server.client() as client:
        client.execute_command(*documented())
        yield server, f"redis://sidestream:secret@127.0.0.1:{server.port}/0"


def refusals(server: RedisServer) -> list[str]:
    """Return what the server's ACL refused."""
    with server.client() as client:
        told = client.execute_command("ACL", "LOG")
    return [str(one) for one in told]


def test_a_worker_and_its_client_need_no_other_rights(limited: tuple[RedisServer, str], database: str) -> None:
    server, url = limited
    with open_folder() as folder:
        rig = Rig(folder, database, url)
        try:
            rig.start()
            first = rig.enqueue("note", "in order", key="invoice:1")
            second = rig.enqueue("note", "in order, too", key="invoice:1", delay=0.2)
            failing = rig.enqueue("fail", limit="courier:1", group="company:2", priority=1)
            direct = rig.jobs.enqueue_direct("note", ["direct"])
            assert rig.ends(first).state == "done"
            assert rig.ends(second).state == "done"
            assert rig.ends(failing).state == "failed"
            rig.until(lambda: "direct" in rig.effects())
            assert direct
            server.flushall()
            assert rig.ends(rig.enqueue("note", "after the server was emptied")).state == "done"
        finally:
            rig.jobs.close()
            rig.close()
        assert "does not let" not in rig.log.read_text()
    assert refusals(server) == []


def test_the_commands_of_an_operator_need_no_other_rights(
    limited: tuple[RedisServer, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = limited
    monkeypatch.setenv("SIDESTREAM_REDIS_URL", url)
    assert run("db", "init").returncode == 0
    job = answer(run("enqueue", "note", "--json"))["id"]
    for words in (
        ["job", "why", str(job)],
        ["queue", "list"],
        ["worker", "list"],
        ["limit", "set", "queue:default", "--concurrency", "1"],
        ["queue", "pause", "default"],
        ["queue", "resume", "default"],
        ["rule", "list"],
        ["job", "priority", str(job), "3"],
        ["failed", "list"],
        ["job", "cancel", str(job)],
    ):
        done = run(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert refusals(server) == []


def test_the_bench_needs_the_rights_that_the_page_adds(
    limited: tuple[RedisServer, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = limited
    [more] = re.findall(r"also needs\s`([^`]+)`", PAGE)
    with server.client() as client:
        client.execute_command(*documented()[:3], *more.split())
    monkeypatch.setenv("SIDESTREAM_REDIS_URL", url)
    monkeypatch.delenv("SIDESTREAM_DATABASE_URL")
    done = run("bench", "--jobs", "100", "--children", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]
    assert refusals(server) == []

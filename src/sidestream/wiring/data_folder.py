"""The data folder of the settings: whose it is, and what is done in it on behalf of whom.

Whatever happens in the folder is done by its owner: root becomes that user first, in a child process. Root itself only
makes the folder, and hands it over when the settings name another user than its owner.
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
    """Return the user who works in the data folder for us, or None when that is ourselves; make it if it is missing.

    Args:
        settings: Which folder, and which user a worker started by root becomes.
        worker: The folder is for a worker of ours, and must belong to the user that it becomes. Anybody else joins
            the owner, but takes from root what no worker of root's uses.

    Raises:
        SettingsError: The folder cannot be used, or is used by workers of another account.
    """
    path = settings.data_dir
    if os.geteuid() != 0:
        return None
    wanted = account_of(0) if settings.user is None else account(settings.user)
    if worker and wanted.uid == 0 and (holder := _holder(path)) is not None:
        raise SettingsError(
            f"The data folder {path} lies in a folder of the account {holder!r}, who could replace it while root uses "
            f"it; with user=none set data_dir to a folder that only root can change, such as /var/lib/sidestream."
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
    """Return the URL of the embedded server for one who enqueues or looks, started if it does not run.

    Raises as :func:`sidestream.broker.redis.embedded.ensure` does, and
    :class:`~sidestream.errors.SettingsError` rather than start a server that the workers of this host would not use.
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
                f"{folder}: jobs enqueued here would not reach the workers there. Run this as that account, or set "
                f"redis_url, here and for the workers, to a server that both reach. If the jobs are for workers of "
                f"this account, set data_dir={path}, or start them first."
            )

    program = embedded.program_for(account_of(own))
    return acting_as(owner, lambda: embedded.ensure(path, program=program, may_start=refuse_second))


def stop_server(settings: Settings) -> bool:
    """Stop the embedded server if no worker uses it; return whether it was stopped."""
    return acting_as(owner_of(settings), lambda: embedded.join(settings.data_dir).stop_if_last())


def signing_keys(settings: Settings) -> Sequence[tuple[str, bytes]]:
    """Return the keys of direct jobs: the settings', else the one in the data folder's key file, made when missing."""
    if settings.signing_keys:
        return settings.signing_keys
    owner = owner_of(settings)
    key_id, secret = acting_as(owner, lambda: _key(settings.data_dir))
    return [(key_id, secret.encode())]


def _holder(path: Path) -> str | None:
    """Return the account other than root's to whom a folder above ``path`` belongs, if there is one."""
    for folder in path.resolve().parents:
        if folder.exists() and (uid := folder.stat().st_uid) != 0:
            return account_of(uid).name
    return None


def _give(folder: int, path: Path, owner: Account, wanted: Account) -> None:
    """Hand the folder over, once its server, which no worker uses, has ended."""
    if "redis.lock" in os.listdir(folder):
        acting_as(owner, lambda: embedded.stop(path))
    hand_over(folder, wanted, lambda name: name in _NAMES or name.startswith("redis"))


def _has_workers(folder: int) -> bool:
    """Whether a worker holds one of its locks in the open data folder."""
    if _is_locked(folder, "users.lock"):
        return True
    try:
        run = os.open("run", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False  # there was no worker yet, or it is no folder of ours
    try:
        return any(_is_locked(run, name, "lock") for name in os.listdir(run))  # noqa: PTH208  # a descriptor
    finally:
        os.close(run)


def _is_locked(folder: int, *names: str) -> bool:
    """Whether the file at ``names`` below the open folder is locked; no link is followed."""
    acquired: list[int] = []
    try:
        for name in names:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            acquired.append(os.open(name, flags, dir_fd=acquired[-1] if acquired else folder))
        fcntl.flock(acquired[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # none, or no file of ours
    finally:
        for descriptor in acquired:
            os.close(descriptor)
    return False


def _key(folder: Path) -> tuple[str, str]:
    """Return id and secret of the folder's key file, as the folder's owner."""
    path = folder / KEY_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_key_file(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SettingsError(f"The signing key {path} can be read by others; run: chmod 600 {path}")
        key_id, colon, secret = path.read_text().strip().partition(":")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The signing key {path} cannot be read or made ({error}); {embedded.remedy(folder)}, or set signing_keys."
        ) from error
    if not colon:
        raise SettingsError(
            f"The signing key {path} is not of the form key-id:secret; remove the file to have a new one made."
        )
    return key_id, secret


def _make_key_file(path: Path) -> None:
    """Write a new key so that readers see all of it or nothing, and that of several makers one wins."""
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
            return  # another process was first, and its key is as good
    finally:
        draft.unlink()

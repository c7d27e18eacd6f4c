"""The key that signs direct jobs when the settings name none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sidestream import Settings
from sidestream.errors import SettingsError
from sidestream.job.codec import Signer
from sidestream.wiring.data_folder import signing_keys


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, user=None)


def test_a_signing_key_is_made_once_and_kept_private(settings: Settings, tmp_path: Path) -> None:
    assert repr(Signer(signing_keys(settings))) == repr(Signer(signing_keys(settings)))
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["signing.key"]


def test_processes_that_create_the_signing_key_at_once_agree(settings: Settings) -> None:
    together = threading.Barrier(8)
    made: set[str] = set()

    def make() -> None:
        together.wait()
        made.add(repr(Signer(signing_keys(settings))))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_signing_key_that_others_can_read_is_refused(settings: Settings, tmp_path: Path) -> None:
    Signer(signing_keys(settings))
    (tmp_path / "signing.key").chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        Signer(signing_keys(settings))


def test_a_broken_key_file_is_explained(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.write_text("nonsense")
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="key-id:secret"):
        Signer(signing_keys(settings))

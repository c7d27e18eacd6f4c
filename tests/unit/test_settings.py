"""Settings: the sources of a value, and the message for a wrong one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sidestream import settings
from sidestream.errors import SettingsError
from sidestream.job.durations import format_duration, parse_duration
from sidestream.process import Account
from sidestream.settings import CONFIG_VARIABLE, Settings

SECRET = "hunter2-hunter2-hunter2-hunter2"


@pytest.fixture(autouse=True)
def _no_settings_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SIDESTREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_keyword_before_environment_before_file_before_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sidestream.toml").write_text("children = 3\nnice = 3\nlease = 33\n")
    monkeypatch.setenv("SIDESTREAM_CHILDREN", "4")
    monkeypatch.setenv("SIDESTREAM_NICE", "4")
    settings = Settings(children=5)
    assert (settings.children, settings.nice, settings.lease, settings.renew_interval) == (5, 4, 33.0, 3.0)


def test_the_file_that_the_variable_names_is_the_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sidestream.toml").write_text("children = 3\n")
    (tmp_path / "other.toml").write_text('children = 7\nqueues = ["a", "b"]\nsigning_keys = "k:x,l:y:z"\n')
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "other.toml"))
    settings = Settings()
    assert (settings.children, settings.queues) == (7, ("a", "b"))
    assert settings.signing_keys == (("k", b"x"), ("l", b"y:z"))


def test_lists_are_comma_separated_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTREAM_QUEUES", "mail, pdf")
    monkeypatch.setenv("SIDESTREAM_SIGNING_KEYS", "new:abc, old:def")
    settings = Settings()
    assert settings.queues == ("mail", "pdf")
    assert settings.signing_keys == (("new", b"abc"), ("old", b"def"))


@pytest.mark.parametrize("name", ["redis_url", "database_url", "app", "failed_retention", "user"])
def test_the_environment_can_set_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SIDESTREAM_{name.upper()}", "none")
    assert getattr(Settings(), name) is None


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().children = 9


def test_the_data_folder_follows_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Settings().data_dir == Settings(user=None).data_dir == Path("/var/lib/sidestream")
    monkeypatch.setattr(settings.settings, "account", lambda name: Account(name, 1, 1, (1,), tmp_path / name))
    (tmp_path / "odoo").mkdir()
    assert Settings(user="odoo").data_dir == tmp_path / "odoo" / ".local" / "share" / "sidestream"
    assert Settings(user="homeless").data_dir == Path("/var/lib/sidestream")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings().data_dir == tmp_path / "sidestream"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().data_dir == tmp_path / ".local" / "share" / "sidestream"
    assert Settings(data_dir="here").data_dir == tmp_path / "here"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"children": 0}, "The setting children=0 is wrong (Child processes of a worker): input should be greater"),
        ({"children": "x"}, "children='x' is wrong"),
        ({"lease": float("nan")}, "lease=nan is wrong"),
        (
            {"lease": "15x"},
            "The setting lease='15x' is wrong (Time after which the jobs of a silent worker are taken over)",
        ),
        ({"lease": "15 parsecs"}, "expected a duration such as 15s, 200ms, 2m, 12h or 30d, or a number of seconds"),
        ({"lease": "2h"}, "input should be less than or equal to 3600"),
        ({"lease": True}, "lease=True is wrong"),
        ({"child_max_memory": "1 elephant"}, "child_max_memory='1 elephant' is wrong"),
        ({"child_max_memory": "1MB"}, "input should be greater than or equal to 16777216"),
        ({"renew_interval": 6}, "renew_interval=6s is too long for lease=15s"),
        ({"renew": 3}, "There is no setting 'renew'; settings are: app, "),
        ({"prefetch_ms": 3}, "There is no setting 'prefetch_ms'; settings are: app, "),
        ({"child_max_memory_mb": 512}, "There is no setting 'child_max_memory_mb'; settings are: app, "),
        ({"queues": "a,-b"}, "the queue name '-b' is not allowed"),
        ({"queues": "a,a"}, "each queue may be named once"),
        ({"queues": ()}, "queues=() is wrong"),
        ({"app": "app"}, "expected module:attribute"),
        ({"log_level": "loud"}, "'debug', 'info', 'warning' or 'error'"),
        ({"redis_url": "http://x"}, "expected a URL that begins with redis://"),
        ({"lese": 3}, "There is no setting 'lese'; settings are: app, "),
        ({"signing_keys": "k"}, "expected id:secret"),
        ({"user": 7}, "user=7 is wrong"),
    ],
)
def test_a_wrong_value_gets_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTREAM_CHILDRENS", "4")
    with pytest.raises(
        SettingsError, match=r"SIDESTREAM_CHILDRENS is not a setting.*expected one of: app, batch, child"
    ):
        Settings()


DURATIONS = [
    ("lease", "15s", 15.0),
    ("renew_interval", "200ms", 0.2),
    ("hard_limit", "2m", 120.0),
    ("hard_limit", "1.5 h", 5400.0),
    ("done_retention", "30d", 2_592_000.0),
    ("failed_retention", "1d", 86_400.0),
    ("prefetch", "0", 0.0),
    ("batch", "0.01", 0.01),
    ("drain_timeout", "1e1", 10.0),
]


@pytest.mark.parametrize(("name", "text", "seconds"), DURATIONS)
def test_a_duration_is_a_text_with_a_unit_or_a_number_of_seconds(
    name: str, text: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert getattr(Settings(**{name: text}), name) == getattr(Settings(**{name: seconds}), name) == seconds
    (tmp_path / "sidestream.toml").write_text(f'{name} = "{text}"\n')
    assert getattr(Settings(), name) == seconds
    (tmp_path / "sidestream.toml").unlink()
    monkeypatch.setenv(f"SIDESTREAM_{name.upper()}", text)
    assert getattr(Settings(), name) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 10**9), ("512MB", 512 * 10**6), ("1GiB", 1 << 30), ("67108864", 1 << 26)]
)
def test_a_size_is_a_text_with_a_unit_or_a_number_of_bytes(
    text: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings(child_max_memory=size).child_max_memory == size
    monkeypatch.setenv("SIDESTREAM_CHILD_MAX_MEMORY", text)
    assert Settings().child_max_memory == size


@pytest.mark.parametrize("seconds", [0, 0.01, 0.2, 1, 1.5, 15, 60, 90, 1800, 5400, 86_400, 2_592_000])
def test_a_written_duration_reads_as_the_same_seconds(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("content", "said"),
    [("children = ", "cannot be read"), ("lese = 3", "no setting 'lese'"), ("children = 'x'", "children='x'")],
)
def test_a_wrong_file_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "sidestream.toml").write_text(content)
    with pytest.raises(SettingsError, match=said):
        Settings()


def test_a_file_that_was_named_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, "nowhere.toml")
    with pytest.raises(SettingsError, match=r"nowhere\.toml does not exist"):
        Settings()


@pytest.mark.parametrize(
    "name",
    ["REDIS_SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "REDIS_PORT_6379_TCP", "PORT_6379_TCP_ADDR"],
)
def test_kubernetes_service_variables_are_not_settings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"SIDESTREAM_{name}", "tcp://10.0.0.1:6379")
    Settings()
    monkeypatch.setenv("SIDESTREAM_PORTS", "6379")
    with pytest.raises(SettingsError, match="SIDESTREAM_PORTS is not a setting"):
        Settings()


def test_no_secret_is_ever_shown() -> None:
    settings = Settings(
        signing_keys=f"k:{SECRET}", redis_url=f"redis://:{SECRET}@h", database_url=f"postgresql://u:{SECRET}@h/d"
    )
    assert SECRET not in repr(settings) + str(settings)
    for wrong in (
        {"signing_keys": SECRET},
        {"redis_url": f"http://{SECRET}"},
        {"database_url": SECRET.encode() + b"\xff"},
    ):
        with pytest.raises(SettingsError) as caught:
            Settings(**wrong)
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


def test_every_setting_is_described_in_one_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name

"""Odoo's configuration file: its PostgreSQL options, and our section in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from sidestream.errors import SettingsError
from sidestream.settings import Settings
from sidestream.settings.odoo_config import database_parameters
from sidestream.wiring.client import store_url

CONF = """
[options]
db_host = 10.0.0.5
db_port = 6432
db_user = odoo
db_password = s3cret%
db_sslmode = False
; a comment
[sidestream]
children = 7
nice = 12
idle_cpu_only = yes
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SIDESTREAM_NICE", "SIDESTREAM_CONFIG", "SIDESTREAM_CHILDREN"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "odoo.conf"
    path.write_text(CONF)
    return path


def test_the_database_options_are_read_as_odoo_reads_them(conf: Path) -> None:
    assert database_parameters(conf, "shop") == {
        "dbname": "shop",
        "host": "10.0.0.5",
        "port": "6432",
        "user": "odoo",
        "password": "s3cret%",
    }


def test_two_settings_files_are_one_too_many(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTREAM_CONFIG", "other.toml")
    with pytest.raises(SettingsError, match=r"other\.toml and Odoo's configuration file .*odoo\.conf are both named"):
        Settings(odoo_config=conf, odoo_database="shop")


def test_our_section_is_the_settings_file(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTREAM_NICE", "3")
    settings = Settings(odoo_config=conf, odoo_database="shop")
    assert (settings.children, settings.nice, settings.idle_cpu_only) == (7, 3, True), (
        "the environment wins over the file"
    )
    url = store_url(settings)
    assert url is not None
    assert conninfo_to_dict(url)["dbname"] == "shop"
    assert store_url(Settings(odoo_config=conf, odoo_database="shop", database_url="postgresql:///other")) == (
        "postgresql:///other"
    )


def test_the_file_may_be_named_by_the_environment(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTREAM_ODOO_CONFIG", str(conf))
    monkeypatch.setenv("SIDESTREAM_ODOO_DATABASE", "shop")
    settings = Settings()
    assert (settings.odoo_database, settings.children) == ("shop", 7)


def test_a_wrong_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings(odoo_config=tmp_path / "missing.conf", odoo_database="shop")
    broken = tmp_path / "broken.conf"
    broken.write_text("no section\n")
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings(odoo_config=broken, odoo_database="shop")
    unknown = tmp_path / "unknown.conf"
    unknown.write_text("[options]\n[sidestream]\nchildern = 2\n")
    with pytest.raises(SettingsError, match="There is no setting 'childern'"):
        Settings(odoo_config=unknown, odoo_database="shop")


def test_contradictory_settings_are_refused(conf: Path) -> None:
    with pytest.raises(SettingsError, match="without odoo_config"):
        Settings(odoo_database="shop")
    with pytest.raises(SettingsError, match="one application"):
        Settings(odoo_config=conf, odoo_database="shop", app="a:b")


def test_the_section_in_the_documentation_can_be_copied(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "odoo.md").read_text()
    section = page[page.index("[sidestream]") :].partition("```")[0]
    path = tmp_path / "odoo.conf"
    path.write_text(f"[options]\ndb_host = localhost\n{section}")
    settings = Settings(odoo_config=path, odoo_database="shop")
    assert (settings.redis_url, settings.children, settings.nice) == ("redis://redis.internal:6379/0", 4, 10)
    assert settings.idle_cpu_only

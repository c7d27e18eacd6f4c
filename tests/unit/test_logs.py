"""Log lines hide secrets and name the job that wrote them."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from sidestream.logs import JobFilter, JsonLines, TextLines, set_job, shown_database, shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:geheim@redis.example:6380/2?password=geheim", "redis://redis.example:6380/2"),
        ("rediss://:geheim@redis.example", "rediss://redis.example"),
        ("unix:///run/redis.sock?password=geheim", "unix:///run/redis.sock"),
    ],
)
def test_a_servers_url_is_shown_without_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://shop:geheim@db.example:5433/shop?sslpassword=geheim", "postgresql://db.example:5433/shop"),
        ("postgresql:///shop", "postgresql:///shop"),
        ("host=db port=5432 dbname=shop user=odoo password='it\\'s geheim dbname=no'", "postgresql://db:5432/shop"),
        ("dbname=shop", "postgresql:///shop"),
    ],
)
def test_a_database_is_shown_without_secrets(url: str, shown: str) -> None:
    assert shown_database(url) == shown
    assert "geheim" not in shown


def record(text: str, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("shop").makeRecord("shop", logging.INFO, __file__, 1, text, (), None, None, extra)
    JobFilter().filter(made)
    return made


def test_lines_of_a_jobs_code_name_it_in_text_and_in_json() -> None:
    text = TextLines("%(asctime)s %(levelname)-7s %(message)s")
    set_job(7, "shop.confirm")
    try:
        inside, own = record("inside"), record("own", job_id="x")
    finally:
        set_job(None, None)
    outside = record("outside")
    assert text.format(inside).endswith(" INFO    [job 7 shop.confirm] inside")
    assert text.format(outside).endswith(" INFO    outside")
    assert json.loads(JsonLines().format(inside)) | {"at": ""} == {
        "at": "",
        "level": "info",
        "logger": "shop",
        "message": "inside",
        "job_id": 7,
        "job_action": "shop.confirm",
    }
    assert json.loads(JsonLines().format(own))["job_id"] == "x", "what the application says itself stands"
    assert "job_id" not in json.loads(JsonLines().format(outside))


def test_a_time_is_written_as_the_standard_formatter_writes_it() -> None:
    made = record("x")
    shape = "%(asctime)s %(message)s"
    assert TextLines(shape).format(made) == logging.Formatter(shape).format(made)


def test_a_traceback_is_part_of_both_forms() -> None:
    try:
        raise LookupError("no such order")
    except LookupError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    assert "LookupError: no such order" in json.loads(JsonLines().format(made))["traceback"]
    assert TextLines("%(message)s").format(made).endswith("LookupError: no such order")


def test_lines_have_no_secrets_and_nothing_that_a_terminal_obeys() -> None:
    error = ValueError("GET /?token=geheim\x1b[31m")
    made = record("refused: password=geheim\x1b[2J\r", api_key="geheim", error="secret: geheim")
    made.exc_info = (type(error), error, None)
    text = TextLines("%(asctime)s %(levelname)-7s %(message)s").format(made)
    line = JsonLines().format(made)
    for said in (text, line):
        assert "geheim" not in said
        assert "\x1b" not in said
        assert "\r" not in said
    assert "refused: password=***" in text
    assert json.loads(line)["api_key"] == "***"

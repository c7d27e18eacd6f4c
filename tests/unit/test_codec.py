"""Encode and decode jobs, and refuse everything else."""

from __future__ import annotations

import enum
import json
import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestream.errors import (
    BadReference,
    BadSignature,
    InvalidJob,
    InvalidName,
    PayloadNotJson,
    PayloadTooLarge,
    SettingsError,
    UnknownVersion,
    WireError,
)
from sidestream.job.codec import (
    PAYLOAD_LIMIT,
    Signer,
    decode_payload,
    encode_payload,
    from_ms,
    to_ms,
)
from sidestream.job.job import Job
from sidestream.job.uuids import new_uuid

SECRET = b"a secret of 16 b"
UUID_1 = UUID(int=1)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@pytest.fixture
def signer() -> Signer:
    return Signer([("k1", SECRET)])


@given(
    st.lists(json_values, max_size=4), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values)
)
def test_json_arguments_come_back_as_they_went_in(args: list[Any], kwargs: dict[str, Any]) -> None:
    assert decode_payload(encode_payload(args, kwargs)) == (args, kwargs)


def test_the_payload_is_versioned_json_text() -> None:
    assert encode_payload((1,), {"name": "Ελένη"}) == '{"v":1,"args":[1],"kwargs":{"name":"Ελένη"}}'


def test_tuples_come_back_as_lists() -> None:
    assert decode_payload(encode_payload(((1, 2),), {})) == ([[1, 2]], {})


class Colour(enum.StrEnum):
    RED = "red"


def test_an_enumeration_is_written_as_its_value() -> None:
    assert decode_payload(encode_payload((Colour.RED,), {})) == (["red"], {})


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((datetime(2026, 1, 1, tzinfo=UTC),), {}, r"args\[0\] .* of type datetime"),
        ((1, [2, {"a": Decimal(1)}]), {}, r"args\[1\]\[1\]\['a'\] .* of type Decimal"),
        ((), {"data": b"x"}, r"kwargs\['data'\] .* of type bytes"),
        ((), {"data": {1: 2}}, r"a name in kwargs\['data'\] is 1 of type int"),
        ((math.nan,), {}, r"args\[0\] is nan .* finite"),
        (([math.inf],), {}, r"args\[0\]\[0\] is inf"),
        ((object,), {}, r"of type type"),
        (({1, 2},), {}, r"of type set"),
        (("\ud800",), {}, r"not valid Unicode"),
        ((10**5000,), {}, r"cannot be written as JSON"),
        ({"a": 1}, {}, r"args is .* expected a list or a tuple"),
        ((), [1], r"kwargs is .* expected a dictionary"),
    ],
)
def test_values_that_are_not_json_are_refused_by_name_and_type(args: Any, kwargs: Any, named: str) -> None:
    with pytest.raises(PayloadNotJson, match=named):
        encode_payload(args, kwargs)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(PayloadNotJson, match="contains itself"):
        encode_payload(loop, {})


def test_the_limit_counts_bytes_not_characters() -> None:
    frame = len(encode_payload(("",), {}))
    assert encode_payload(("x" * (PAYLOAD_LIMIT - frame),), {})
    with pytest.raises(PayloadTooLarge, match=r"65537 bytes .* pass its id"):
        encode_payload(("x" * (PAYLOAD_LIMIT - frame + 1),), {})
    with pytest.raises(PayloadTooLarge):
        encode_payload(("ε" * (PAYLOAD_LIMIT // 2),), {})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", WireError),
        ("{", WireError),
        ("[]", WireError),
        ("[" * 100_000, WireError),
        ('{"v":1,"args":[],"kwargs":{}} ', WireError),
        ('{"v":1,"args":{},"kwargs":{}}', WireError),
        ('{"v":1,"args":[]}', WireError),
        ('{"v":2,"args":[],"kwargs":{}}', UnknownVersion),
        ("{}", UnknownVersion),
    ],
)
def test_a_payload_that_we_did_not_write_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode_payload(text)


jobs = st.builds(
    Job,
    action=st.sampled_from(["a", "sale.confirm"]),
    args=st.lists(json_values, max_size=3).map(tuple),
    kwargs=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=3),
    queue=st.sampled_from(["default", "mail"]),
    key=st.none() | st.just("order/Ω"),
    run_at=st.none() | st.integers(0, 4_000_000_000_000).map(from_ms),
    uuid=st.uuids(),
    priority=st.integers(0, 9),
    group=st.none() | st.just("company:2"),
    limit=st.none() | st.just("courier:7"),
    unique=st.none(),
    expires_at=st.none() | st.integers(0, 4_000_000_000_000).map(from_ms),
)


@given(jobs, st.integers(0, 2**45))
def test_a_direct_job_comes_back_as_it_was_sealed(job: Job, at: int) -> None:
    signer = Signer([("k1", SECRET)])
    acquired = signer.open(signer.seal(job, at), job.uuid)
    assert acquired.job == job
    assert acquired.enqueued_ms == at


def sealed(signer: Signer) -> bytes:
    return signer.seal(Job("a", (1,), uuid=UUID_1), 1)


def test_every_changed_byte_is_noticed(signer: Signer) -> None:
    raw = sealed(signer)
    for place in range(len(raw)):
        for bit in (1, 128):
            changed = bytearray(raw)
            changed[place] ^= bit
            with pytest.raises(WireError):
                signer.open(bytes(changed))


def test_every_truncation_is_noticed(signer: Signer) -> None:
    raw = sealed(signer)
    for length in range(len(raw)):
        with pytest.raises(WireError):
            signer.open(raw[:length])


def test_another_secret_under_the_same_id_does_not_verify(signer: Signer) -> None:
    with pytest.raises(BadSignature, match="does not verify"):
        signer.open(sealed(Signer([("k1", b"another secret of 24 byt")])))


def test_a_key_is_rotated_in_three_steps() -> None:
    old, new = ("old", SECRET), ("new", b"new " + SECRET)
    by_old, by_new = sealed(Signer([old, new])), sealed(Signer([new, old]))
    assert by_old.split(b".")[1] == b"old"
    assert by_new.split(b".")[1] == b"new"
    both = Signer([new, old])
    assert both.open(by_old) == both.open(by_new)
    with pytest.raises(BadSignature, match="not among"):
        Signer([new]).open(by_old)


def test_signed_bytes_under_another_uuid_are_not_run(signer: Signer) -> None:
    with pytest.raises(BadSignature, match="moved"):
        signer.open(sealed(signer), UUID(int=2))


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", BadReference),
        (b"hello", BadReference),
        (b'{"job": 1}', BadReference),
        (b"s1.k1", BadReference),
        (b"s2.k1.00.{}", UnknownVersion),
        (b"s1.k1..", BadSignature),
        (b"\x80\x04.", BadReference),
        (b"s1.k1.\xff\xff.{}", BadSignature),
    ],
)
def test_bytes_that_never_were_a_direct_job_are_refused(signer: Signer, raw: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        signer.open(raw)


@pytest.mark.parametrize("body", [b"[]", b"{}", b"\xff", b'{"v":1,"args":[],"kwargs":{}}', b"null"])
def test_a_signature_over_something_else_is_a_wire_error(signer: Signer, body: bytes) -> None:
    key_id, key = next(iter(signer._keys.items()))
    with pytest.raises(WireError):
        signer.open(b".".join((b"s1", key_id, signer._mac(key, body), body)))


def test_a_signed_body_with_wrong_types_is_a_wire_error(signer: Signer) -> None:
    good = {"v": 1, "id": UUID_1.hex, "action": "a", "queue": "q", "key": None, "args": [], "kwargs": {}, "at": 1}
    key_id, key = next(iter(signer._keys.items()))
    for change in ({"id": 5}, {"id": "x"}, {"run_at": "soon"}, {"run_at": 10**30}):
        body = json.dumps({"run_at": None, **good, **change}).encode()
        with pytest.raises(WireError):
            signer.open(b".".join((b"s1", key_id, signer._mac(key, body), body)))


def test_only_valid_direct_jobs_are_sealed(signer: Signer) -> None:
    with pytest.raises(InvalidJob, match="no uuid"):
        signer.seal(Job("a"), 1)
    with pytest.raises(InvalidName):
        signer.seal(Job("a b", uuid=UUID_1), 1)
    with pytest.raises(InvalidName):
        signer.seal(Job("a", queue="ö", uuid=UUID_1), 1)
    with pytest.raises(PayloadTooLarge):
        signer.seal(Job("a", ("x" * PAYLOAD_LIMIT,), uuid=UUID_1), 1)


@pytest.mark.parametrize(
    "keys",
    [[], [("k 1", SECRET)], [("", SECRET)], [("k" * 17, SECRET)], [("k1", b"short")], [("k1", SECRET), ("k1", SECRET)]],
)
def test_invalid_signing_keys_are_refused(keys: list[tuple[str, bytes]]) -> None:
    with pytest.raises(SettingsError):
        Signer(keys)


def test_secrets_are_never_shown(signer: Signer) -> None:
    assert repr(signer) == "Signer(k1)"
    with pytest.raises(SettingsError) as caught:
        Signer([("k1", b"hunter2")])
    assert "hunter2" not in str(caught.value)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 30), timezones=st.just(UTC)))  # noqa: DTZ001
def test_milliseconds_lose_less_than_one(moment: datetime) -> None:
    assert timedelta(0) <= moment - from_ms(to_ms(moment)) < timedelta(milliseconds=1)


def test_uuids_sort_by_their_time_and_never_repeat() -> None:
    made = [new_uuid(now_ns) for now_ns in range(1_700_000_000_000_000_000, 1_700_000_000_010_000_000, 1_000)]
    assert made == sorted(made)
    assert {uuid.version for uuid in made} == {7}
    assert {uuid.variant for uuid in made} == {"specified in RFC 4122"}
    assert len({new_uuid(0) for _ in range(1000)}) == 1000


def test_default_options_take_no_bytes(signer: Signer) -> None:
    """And so a release that knows neither priority nor limits reads what an enqueuer without them writes."""
    body = sealed(signer).split(b".", 3)[3]
    assert list(json.loads(body)) == ["id", "action", "queue", "key", "run_at", "at", "v", "args", "kwargs"]

"""The job's small values: names, references, states."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestream.errors import BadReference, InvalidName, UnknownVersion
from sidestream.job.names import (
    KEY_LIMIT,
    check_action,
    check_group,
    check_key,
    check_limit,
    check_queue,
    check_unique,
    limit_rule,
    tag,
)
from sidestream.job.reference import (
    NO_TAG8,
    SIZES,
    Reference,
    action_of,
    direct_reference,
    group_tag,
    limit_tag,
    row_reference,
)

DATABASE = b"database"

# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "9", "_x", "x" * 63])
def test_plain_names_are_allowed(name: str) -> None:
    assert check_queue(name) == check_action(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:b", "a\n", "\nq", ".a", "-a", "ö", "a{b}", "a*", "x" * 64, None, 5]
)
def test_invalid_names_are_refused_with_the_name_and_the_rule(name: Any) -> None:
    for check, longest in ((check_queue, 63), (check_action, 255)):
        with pytest.raises(InvalidName, match=f"expected 1 to {longest}"):
            check(name * 4 if name == "x" * 64 else name)


@pytest.mark.parametrize("key", ["a", "order 5/Ω", "x" * KEY_LIMIT])
def test_keys_are_free_text(key: str) -> None:
    for check in (check_key, check_group, check_unique):
        assert check(key) == key


@pytest.mark.parametrize("key", ["", "x" * (KEY_LIMIT + 1), "a\nb", "a\x00b", None, 5, b"a"])
def test_invalid_keys_are_refused(key: Any) -> None:
    for check in (check_key, check_group, check_unique, check_limit):
        with pytest.raises(InvalidName, match="expected 1 to 200"):
            check(key)


@pytest.mark.parametrize(("limit", "rule"), [("courier", "courier"), ("courier:7", "courier"), ("a.b:x:y z", "a.b")])
def test_a_limit_key_begins_with_the_name_of_its_rule(limit: str, rule: str) -> None:
    assert limit_rule(check_limit(limit)) == rule


@pytest.mark.parametrize("limit", [":7", "a b:7", "ö:7"])
def test_a_limit_without_a_proper_rule_is_refused(limit: str) -> None:
    with pytest.raises(InvalidName, match="limit rule"):
        check_limit(limit)


def test_tags_are_short_and_stable() -> None:
    # CasResult down, because references that other releases left in Redis hold these bytes.
    assert tag("default", 4).hex() == "c522b539"
    assert tag("order/Ω", 8).hex() == "5fbddc079b535008"


# -- references ------------------------------------------------------------------------------------------------------


TEXTS = st.sampled_from([None, "k", "order/1", "courier:7"])


@given(st.integers(1, 2**63 - 1), TEXTS, TEXTS, TEXTS)
def test_a_row_s_reference_comes_back(row_id: int, key: str | None, group: str | None, limit: str | None) -> None:
    reference = row_reference(DATABASE, row_id, "a.b", key, group, limit)
    raw = reference.pack()
    assert len(raw) == SIZES[raw[0]] == (37 if limit is None else 49)
    assert Reference.unpack(raw) == reference
    assert not reference.direct
    assert action_of(raw) == tag("a.b", 4)
    assert reference.group == group_tag(group)
    assert reference.limit == limit_tag(limit)
    assert (raw[-8:] == NO_TAG8) == (key is None)


@given(st.uuids(), TEXTS, TEXTS, TEXTS)
def test_a_direct_job_s_reference_comes_back(uuid: UUID, key: str | None, group: str | None, limit: str | None) -> None:
    reference = direct_reference(uuid, "a.b", key, group=group, limit=limit)
    raw = reference.pack()
    assert len(raw) == SIZES[raw[0]] == (45 if limit is None else 57)
    assert Reference.unpack(raw) == reference
    assert reference.direct
    assert action_of(raw) == tag("a.b", 4)


def test_limits_of_one_rule_share_its_tag() -> None:
    seven, eight = limit_tag("courier:7"), limit_tag("courier:8")
    assert seven[:4] == eight[:4] == tag("courier", 4)
    assert seven[4:] != eight[4:]


@given(st.lists(st.integers(1, 2**63 - 1), min_size=2))
def test_references_of_one_database_sort_by_id(ids: list[int]) -> None:
    packed = [row_reference(DATABASE, row_id, "a", None).pack() for row_id in ids]
    assert [Reference.unpack(raw).id for raw in sorted(packed)] == sorted(ids)


@given(st.binary(max_size=60))
def test_foreign_bytes_never_pass_and_never_raise_anything_else(raw: bytes) -> None:
    try:
        reference = Reference.unpack(raw)
    except (BadReference, UnknownVersion):
        return
    assert reference.pack() == raw


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", BadReference),
        (b"\x01short", BadReference),
        (b"hello", BadReference),
        (row_reference(DATABASE, 1, "a", None).pack() + b"x", BadReference),
        (b"\x05" + bytes(40), UnknownVersion),
    ],
)
def test_invalid_references_are_refused(raw: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Reference.unpack(raw)

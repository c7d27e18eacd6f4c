"""Jobs as bytes: the arguments in a row, and the signed envelope of a direct job.

The row's payload is the text ``{"v":1,"args":[...],"kwargs":{...}}``. A direct job travels as::

    s1.<key id>.<64 hex digits: HMAC-SHA256 of the body>.<body>

    body = {"id":"<32 hex>","action":..,"queue":..,"key":..,"run_at":<ms|null>,"at":<ms>,
            ["priority":<0..9>,"group":..,"limit":..,"expires_at":<ms>,]  (left out where they are the default)
            "v":1,"args":[..],"kwargs":{..}}

Only JSON crosses a process boundary, never pickle: bytes in Redis must not be able to run anything by being read.
Tuples come back as lists.
"""

from __future__ import annotations

import binascii
import hmac
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

from sidestream.errors import (
    BadReference,
    BadSignature,
    InvalidJob,
    PayloadNotJson,
    PayloadTooLarge,
    SettingsError,
    UnknownVersion,
    WireError,
)
from sidestream.job.job import DEFAULT_PRIORITY, Job
from sidestream.job.names import check_action, check_group, check_key, check_limit, check_queue

PAYLOAD_LIMIT = 64 * 1024
"""Most bytes (UTF-8) that a job's encoded arguments may have."""
MAX_DEPTH = 100
"""How deep lists and dictionaries may be nested; deeper ones could be written but not read back everywhere."""
VERSION = 1
"""Version of the payload and of the envelope."""
MIN_SECRET = 16
"""Fewest bytes of a signing secret."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_PLAIN = frozenset({str, int, bool, type(None)})
_PREFIX = b"s1"
_OTHER_VERSION = re.compile(rb"s[0-9]{1,3}")
_KEY_ID = re.compile(r"[A-Za-z0-9_\-]{1,16}")


def encode_payload(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the text that a row keeps of a job's arguments.

    Raises :class:`~sidestream.errors.PayloadNotJson` (naming the argument and its type) and
    :class:`~sidestream.errors.PayloadTooLarge`.
    """
    if not isinstance(args, list | tuple):
        _refuse("args", args, "a list or a tuple")
    if not isinstance(kwargs, Mapping):
        _refuse("kwargs", kwargs, "a dictionary")
    named = dict(kwargs)
    _check(args, "args", 1)
    _check(named, "kwargs", 1)
    try:
        text = _encode({"v": VERSION, "args": args, "kwargs": named})
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise PayloadNotJson(
            "The job's arguments have a text that is not valid Unicode "
            f"(a lone surrogate, {error.object[error.start]!a}); decode it properly before it is passed."
        ) from error
    except ValueError as error:
        raise PayloadNotJson(f"The job's arguments cannot be written as JSON ({error}); pass text instead.") from error
    if size > PAYLOAD_LIMIT:
        raise PayloadTooLarge(
            f"The job's arguments are {size} bytes as JSON, more than {PAYLOAD_LIMIT}; "
            "store the data and pass its id instead."
        )
    return text


def decode_payload(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the keyword arguments that :func:`encode_payload` wrote.

    Raises :class:`~sidestream.errors.UnknownVersion` and :class:`~sidestream.errors.WireError`.
    """
    return _arguments(_object(text, "payload of a job"), "payload of a job")


class Envelope(NamedTuple):
    """A direct job as it was read, its signature verified."""

    job: Job
    #: When it was enqueued, in Unix milliseconds by the enqueuer's clock.
    enqueued_ms: int


class Signer:
    """Writes and reads the signed bytes of direct jobs.

    The first key signs and every key verifies, so a key is rotated in three steps: add the new one behind the old one
    everywhere, move it to the front, and drop the old one once no job signed with it is left.
    """

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        """Use ``keys``, pairs of key id and secret; raise SettingsError if one is unfit."""
        if not keys:
            raise SettingsError("No signing key is given; set signing_keys to key-id:secret.")
        self._keys: dict[bytes, bytes] = {}
        for key_id, secret in keys:
            if not _KEY_ID.fullmatch(key_id):
                raise SettingsError(
                    f"The signing key id {key_id!r:.40} is not allowed: expected 1 to 16 letters, digits, '_' or '-'."
                )
            if len(secret) < MIN_SECRET:
                raise SettingsError(
                    f"The secret of signing key {key_id!r} has {len(secret)} bytes; expected {MIN_SECRET} or more."
                )
            if key_id.encode() in self._keys:
                raise SettingsError(f"The signing key id {key_id!r} is given twice; every key needs an id of its own.")
            # Derived, so that the same secret used elsewhere never signs bytes that would verify here.
            self._keys[key_id.encode()] = hmac.digest(secret, b"sidestream direct job 1", "sha256")
        self._first = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"Signer({', '.join(key_id.decode() for key_id in self._keys)})"  # never the secrets

    def seal(self, job: Job, enqueued_ms: int, uuid: UUID | None = None) -> bytes:
        """Return the signed bytes of a direct job; ``uuid`` is used if ``job`` has none."""
        named = uuid or job.uuid
        if named is None:
            raise InvalidJob(f"The job of action {job.action!r} has no uuid; only a direct job is signed.")
        # Written by hand up to "at": the names have no character that JSON escapes.
        head = (
            f'{{"id":"{named.hex}","action":"{check_action(job.action)}","queue":"{check_queue(job.queue)}",'
            f'"key":{"null" if job.key is None else _encode(check_key(job.key))},'
            f'"run_at":{"null" if job.run_at is None else to_ms(job.run_at)},"at":{enqueued_ms}'
        )
        # Omitted when not requested: Redis holds these bytes, and older releases wrote none of these fields.
        asked: dict[str, object] = {}
        if job.priority != DEFAULT_PRIORITY:
            asked["priority"] = job.priority
        if job.group is not None:
            asked["group"] = check_group(job.group)
        if job.limit is not None:
            asked["limit"] = check_limit(job.limit)
        if job.expires_at is not None:
            asked["expires_at"] = to_ms(job.expires_at)
        if asked:
            head = f"{head},{_encode(asked)[1:-1]}"
        # Two JSON objects become one: the head without its closing brace, the payload without its opening one.
        body = f"{head},{encode_payload(job.args, job.kwargs)[1:]}".encode()
        return b"%b.%b.%b.%b" % (_PREFIX, self._first, self._mac(self._keys[self._first], body), body)

    def open(self, raw: bytes, uuid: UUID | None = None) -> Envelope:
        """Verify and read what :meth:`seal` wrote; ``uuid`` is that of its reference, if any.

        Raises :class:`~sidestream.errors.BadSignature`, :class:`~sidestream.errors.UnknownVersion` and, for bytes that
        never were an envelope, :class:`~sidestream.errors.BadReference`.
        """
        parts = raw.split(b".", 3)
        if len(parts) != 4 or parts[0] != _PREFIX:
            _refuse_bytes(raw, parts)
        _, key_id, mac, body = parts
        key = self._keys.get(key_id)
        if key is None:
            raise BadSignature(
                f"A direct job is signed with the key {key_id[:16]!r}, which is not among this worker's signing_keys; "
                "add the key, or drop the job."
            )
        if not hmac.compare_digest(self._mac(key, body), mac):
            raise BadSignature(
                f"The signature of a direct job (key {key_id.decode()!r}) does not verify: it was changed, cut off, or "
                "signed with another secret."
            )
        return _read(body, uuid)

    @staticmethod
    def _mac(key: bytes, body: bytes) -> bytes:
        return binascii.hexlify(hmac.digest(key, body, "sha256"))


def peek(raw: bytes) -> Job:
    """Read what :meth:`Signer.seal` wrote without verifying it: to show it, never to run it.

    Raises as :meth:`Signer.open` does.
    """
    parts = raw.split(b".", 3)
    if len(parts) != 4 or parts[0] != _PREFIX:
        _refuse_bytes(raw, parts)
    return _read(parts[3], None).job


def to_ms(moment: datetime) -> int:
    """Return the aware ``moment`` in Unix milliseconds, rounded down."""
    return (moment - _EPOCH) // _MILLISECOND  # whole numbers: a float would sometimes fall one short


def from_ms(milliseconds: int) -> datetime:
    """Return the moment at ``milliseconds`` after the Unix epoch, aware, in UTC."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def _read(body: bytes, uuid: UUID | None) -> Envelope:
    try:
        fields = _object(body.decode(), "direct job")
        args, kwargs = _arguments(fields, "direct job")
        run_at, expires_at = fields["run_at"], fields.get("expires_at")
        named = uuid if uuid is not None and fields["id"] == uuid.hex else UUID(hex=fields["id"])
        envelope = Envelope(
            Job(
                fields["action"],
                tuple(args),
                kwargs,
                fields["queue"],
                fields["key"],
                None if run_at is None else from_ms(run_at),
                None,
                named,
                priority=fields.get("priority", DEFAULT_PRIORITY),
                group=fields.get("group"),
                limit=fields.get("limit"),
                expires_at=None if expires_at is None else from_ms(expires_at),
            ),
            fields["at"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        # Signed, yet unreadable: our own keys were used by something that is not this release.
        raise WireError(
            f"The signed bytes of a direct job cannot be read ({type(error).__name__}: {error})."
        ) from error
    if uuid is not None and uuid != named:
        raise BadSignature(
            f"The signed bytes of direct job {named} were found under {uuid}: they were moved, so the job does not run."
        )
    return envelope


def _refuse_bytes(raw: bytes, parts: list[bytes]) -> NoReturn:
    if parts[0] != _PREFIX and _OTHER_VERSION.fullmatch(parts[0]):
        raise UnknownVersion(
            f"A direct job was written in version {parts[0].decode()}; this release knows s1. "
            "Run the worker of the release that wrote it."
        )
    raise BadReference(f"The bytes {raw[:24]!r} of a direct job are truncated or foreign ({len(raw)} bytes).")


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found, end = _decode(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"The {what} is not JSON ({error}); it was not written by Sidestream.") from error
    if not isinstance(found, dict) or end != len(text):
        raise WireError(f"The {what} is not one JSON object; it was not written by Sidestream.")
    return found


def _arguments(fields: dict[str, Any], what: str) -> tuple[list[Any], dict[str, Any]]:
    version = fields.get("v")
    if version != VERSION:
        raise UnknownVersion(f"The {what} has version {version!r:.20}; this release knows {VERSION}.")
    args, kwargs = fields.get("args"), fields.get("kwargs")
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise WireError(f"The {what} has no list of args and dictionary of kwargs; it was not written by Sidestream.")
    return args, kwargs


def _check(value: Any, where: str, depth: int) -> None:
    """Raise unless ``value`` comes back from JSON as it went in (tuples as lists)."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):  # json would quietly turn 1 into "1"
                _refuse(f"a name in {where}", name, "text")
            if type(item) not in _PLAIN:
                _check_one(item, f"{where}[{name!r}]", depth)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if type(item) not in _PLAIN:
                _check_one(item, f"{where}[{index}]", depth)


def _check_one(value: Any, where: str, depth: int) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            _refuse(where, value, "a finite number")
    elif isinstance(value, dict | list | tuple):
        if depth >= MAX_DEPTH:
            raise PayloadNotJson(f"The argument {where:.60} is nested more than {MAX_DEPTH} deep, or contains itself.")
        _check(value, where, depth + 1)
    elif not isinstance(value, str | int):  # an enumeration of text or numbers is written as its value
        _refuse(where, value, "text, a number, true, false, None, a list or a dictionary")


def _refuse(where: str, value: Any, expected: str) -> NoReturn:
    raise PayloadNotJson(
        f"The argument {where:.80} is {value!r:.60} of type {type(value).__name__}, which is not JSON: "
        f"expected {expected}; pass an id or text instead."
    )

"""Run commands on one Redis URL through a pool of connections, with our own errors.

Nothing is repeated, except once when a pooled connection turns out to be closed; a time-out never is.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import TimeoutError as TimedOut
from redis.retry import Retry

from sidestream.errors import BrokerError, BrokerFull, BrokerUnavailable, BrokerUnsuitable, SettingsError
from sidestream.logs import shown_url

_SCHEMES = ("redis", "rediss", "unix")
_WAITING = ("MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "LOADING")
"""Error codes of a server that will recover by itself."""
_FORBIDDEN = ("ACL failure in script", "The user executing the script can't")
"""The start of a refusal inside a function: from Valkey (which names the command) and from Redis (which does not)."""
_FINAL = (AuthenticationError, AuthorizationError, BusyLoadingError, MaxConnectionsError)
"""Connection errors that a second connection would repeat."""


class FunctionMissing(Exception):
    """The server does not have the function that FCALL named."""


class CommandForbidden(Exception):
    """A function ran a command that the Redis user may not run; the text is the server's."""


class NotReady(Exception):
    """There is no open connection to use at once."""


class RedisConnection:
    """Sends the commands of this package: one URL, any number of threads."""

    def __init__(self, url: str, timeout: float = 1.0) -> None:
        """Prepare connections to ``url`` (``redis://``, ``rediss://``, ``unix://``); connect later.

        Args:
            url: Where the server is.
            timeout: Seconds for a connection to be made, and for an answer to begin.

        Raises:
            SettingsError: The URL is not one of Redis.
        """
        if urlsplit(url).scheme not in _SCHEMES:
            raise SettingsError(
                f"The Redis URL {shown_url(url)!r} is not usable: expected redis://, rediss:// or unix://; correct it."
            )
        self.url = shown_url(url)
        self.timeout = timeout
        self._closed = False
        self._ready: ConnectionInterface | None = None
        try:
            self._pool = ConnectionPool.from_url(
                url, protocol=2, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
            )
        except ValueError as error:
            raise SettingsError(f"The Redis URL {self.url!r} is not usable: {error}; correct redis_url.") from error

    def run(self, *command: Any, wait: float = 0.0) -> Any:
        """Send one command and return the plain reply (RESP2, bytes).

        Args:
            command: Its words: bytes, str or int.
            wait: Seconds that the command itself may block in the server.

        Raises:
            BrokerError: One of its kinds; see :func:`translate`.
            FunctionMissing: FCALL named a function that the server does not have.
            CommandForbidden: The function that FCALL named ran a command that the user may not run.
        """
        try:
            return self._once(command, wait)
        except ConnectionFailed as error:
            if isinstance(error, _FINAL):
                raise translate(error, self.url) from error
        except (RedisError, OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise self._explain(error) from error
        try:
            return self._once(command, wait)
        except (RedisError, OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise self._explain(error) from error

    def get_ready(self) -> None:
        """Open the connection of :meth:`run_at_once` unless it is open; raises as :meth:`run` does."""
        if self._ready is not None and self._ready.is_connected:
            return
        # Not from the pool, which counts the connections that it made: this one is opened again without counting twice.
        connection = self._ready or self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            connection.connect()
        except (RedisError, OSError, UnicodeError) as error:
            raise self._explain(error) from error
        self._ready = connection

    def run_at_once(self, *command: Any, seconds: float) -> Any:
        """Send a command over the connection of :meth:`get_ready`; for one thread at a time.

        No name is resolved and nothing is connected, so it takes at most ``seconds``, if the command is of a few KiB.

        Raises:
            NotReady: There is no open connection; nothing was sent, or its result is unknown.
            BrokerError, FunctionMissing, CommandForbidden: As :meth:`run`.
        """
        connection = self._ready
        if connection is None or not connection.is_connected:
            raise NotReady
        try:
            connection.send_command(*command)  # type: ignore[no-untyped-call]  # redis-py does not annotate it
            return connection.read_response(disable_decoding=True, timeout=seconds)
        except ConnectionFailed as error:
            raise NotReady from error  # closed by the server or on the way: get_ready opens it again
        except (RedisError, OSError) as error:
            raise self._explain(error) from error
        except BaseException:
            # Stopped between command and reply: the next call must not read this reply.
            connection.disconnect()  # type: ignore[no-untyped-call]  # redis-py does not annotate it
            raise

    def close(self) -> None:
        """Close every connection; later commands raise BrokerUnavailable."""
        self._closed = True
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.disconnect()  # type: ignore[no-untyped-call]  # redis-py does not annotate it
        self._pool.disconnect()

    def _once(self, command: tuple[Any, ...], wait: float) -> Any:
        if self._closed:
            raise BrokerUnavailable(f"The connection to Redis at {self.url} was closed; open a new broker.")
        connection = self._pool.get_connection()
        try:
            connection.send_command(*command)  # type: ignore[no-untyped-call]  # redis-py does not annotate it
            if wait:
                return connection.read_response(disable_decoding=True, timeout=self.timeout + wait)
            return connection.read_response(disable_decoding=True)
        finally:
            self._pool.release(connection)

    def _explain(self, error: Exception) -> Exception:
        if str(error) == "Function not found":
            return FunctionMissing()
        if str(error).startswith(_FORBIDDEN):
            return CommandForbidden(str(error))
        return translate(error, self.url)


def translate(error: Exception, url: str) -> BrokerError:
    """Return our error for ``error`` from redis-py, the operating system or the resolver.

    See https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors for the codes.
    """
    said = str(error).strip().rstrip(".") or type(error).__name__
    code = said.split(" ", 1)[0]
    if isinstance(error, TimedOut):
        return BrokerUnavailable(f"Redis at {url} did not answer in time: {said}; jobs wait until it does.")
    if isinstance(error, (BusyLoadingError, ClusterDownError, TryAgainError)) or code in _WAITING:
        return BrokerUnavailable(f"Redis at {url} is not ready yet: {said}; jobs wait until it is.")
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return BrokerUnsuitable(
            f"Redis at {url} refuses to let us in: {said}; correct the user and password in redis_url."
        )
    if isinstance(error, OutOfMemoryError):
        return BrokerFull(f"Redis at {url} has no memory left for new jobs: {said}; raise maxmemory or free some.")
    if isinstance(error, NoPermissionError):
        return BrokerUnsuitable(
            f"Redis at {url} does not allow what Sidestream needs: {said}; grant it with ACL SETUSER "
            "(docs/howto/worker.md has the whole line)."
        )
    if isinstance(error, ReadOnlyError):
        return BrokerUnsuitable(f"Redis at {url} is a read-only replica: {said}; name its primary in redis_url.")
    if isinstance(error, AskError) or code == "CROSSSLOT":
        return BrokerUnsuitable(f"Redis at {url} is one node of a cluster: {said}; name a single server in redis_url.")
    if said == "DB index is out of range":
        return BrokerUnsuitable(
            f"Redis at {url} has no database of that number: {said}; lower the number at the end of redis_url."
        )
    if code == "MISCONF":
        return BrokerUnsuitable(
            f"Redis at {url} cannot write its data to disk: {said}; free space or correct its folder."
        )
    if isinstance(error, (ConnectionFailed, OSError, UnicodeError)):
        return BrokerUnavailable(f"Redis at {url} cannot be reached: {said}; start it or correct redis_url.")
    return BrokerUnsuitable(
        f"Redis at {url} answered unexpectedly: {said}; look for other programs that write to its keys."
    )

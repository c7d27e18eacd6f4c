"""Build the components of a client from the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Self

import psycopg
from psycopg.conninfo import make_conninfo

from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.keys import PREFIX
from sidestream.client import Client
from sidestream.errors import SettingsError
from sidestream.executors.python.actions import Actions
from sidestream.job.codec import Signer
from sidestream.relay.relay import Relay
from sidestream.settings import Settings
from sidestream.settings.odoo_config import database_parameters
from sidestream.store import adapter
from sidestream.wiring import data_folder
from sidestream.wiring.data_folder import signing_keys


class Jobs(Client):
    """Enqueues jobs, with the servers of the settings.

    Create one per process. Nothing connects or starts before the first job, and a forked child can use it too.
    """

    @classmethod
    def reading(cls, read: Callable[[], Settings]) -> Self:
        """Return Jobs that read their settings in the relay's thread, again while they are wrong.

        For applications whose users must not see errors in the settings: their jobs are rows, which workers find.
        """
        jobs = cls.__new__(cls)
        Client.__init__(jobs, Relay(lambda: build_broker(read())), lambda: Signer(signing_keys(read())))
        return jobs

    def __init__(self, settings: Settings | None = None, *, actions: Actions | None = None) -> None:
        """Use ``settings`` (None: environment and settings file), and check names in ``actions``."""
        chosen = settings or Settings()
        super().__init__(
            Relay(lambda: build_broker(chosen), wait=chosen.publish_timeout),
            lambda: Signer(signing_keys(chosen)),
            actions=actions,
            direct_timeout=chosen.redis_timeout,
        )


def build_broker(settings: Settings, *, prefix: str = PREFIX) -> RedisBroker:
    """Return a checked Redis broker; start its server if it is the embedded one.

    ``prefix``: prefix of its keys; only the benchmark uses another one than the default.

    Raises :class:`~sidestream.errors.BrokerUnavailable`, :class:`~sidestream.errors.BrokerUnsuitable` and
    :class:`~sidestream.errors.SettingsError`.
    """
    url = settings.redis_url or data_folder.server_url(settings)
    broker = RedisBroker(url, timeout=settings.redis_timeout, lease_ms=round(settings.lease * 1000), prefix=prefix)
    try:
        broker.probe()
    except BaseException:
        broker.close()
        raise
    return broker


def store_url(settings: Settings) -> str | None:
    """Return the database URL from the settings or Odoo's configuration, or None."""
    if settings.database_url is not None or settings.odoo_config is None or settings.odoo_database is None:
        return settings.database_url
    return make_conninfo(**database_parameters(settings.odoo_config, settings.odoo_database))


@contextmanager
def store_connection(settings: Settings, name: str = "sidestream/cli") -> Iterator[psycopg.Connection[Any]]:
    """Connect to the store's database as ``name``, and close at the end of the block."""
    url = store_url(settings)
    if url is None:
        raise SettingsError(
            "No database is configured; pass --database-url or set SIDESTREAM_DATABASE_URL, for example postgresql:///shop."
        )
    connection: psycopg.Connection[Any] = adapter.connect(url, name, autocommit=False)
    with closing(connection):
        yield connection


@contextmanager
def store_cursor(settings: Settings) -> Iterator[psycopg.Cursor[Any]]:
    """Open a connection and a cursor; commit at the end of the block unless it raises."""
    with store_connection(settings) as connection:
        try:
            with connection.cursor() as cursor:
                yield cursor
            connection.commit()
        except psycopg.Error as error:
            raise adapter.translate(error, "running a command", connection) from error

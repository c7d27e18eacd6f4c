"""Every setting, once: its name, default, meaning and check.

Where a value comes from, first found wins: keyword, environment (``SIDESTREAM_LEASE=10``), settings file (TOML, the one
that ``SIDESTREAM_CONFIG`` names, else ``sidestream.toml`` in the current folder if there is one; with
``odoo_config``, the section ``[sidestream]`` of that file instead), default.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sidestream.errors import InvalidName, SettingsError
from sidestream.job.names import check_queue
from sidestream.process import account
from sidestream.settings.odoo_config import settings_section

PREFIX = "SIDESTREAM_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
CONFIG_FILE = "sidestream.toml"
_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")
"""What Kubernetes sets in every pod for a service whose name begins with "sidestream".
https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables"""
_NOT_SETTINGS = frozenset(f"{PREFIX}{name}" for name in ("CONFIG", "CRASH_AT", "CRASH_SOCKET", "FAMILY"))
"""Variables with our prefix that are no settings: the file's name, the crash points', the mark of a worker's family."""


def default_data_dir(user: str | None) -> Path:
    """Return the data folder of ``user``, whom root becomes, or our own: so both find the same embedded server.

    ``/var/lib/sidestream`` for root who stays root, whose home is for nobody else, and for users without a home.
    """
    if os.geteuid() != 0:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "sidestream"
    home = None if user is None else account(user).home
    return home / ".local" / "share" / "sidestream" if home and home.is_dir() else Path("/var/lib/sidestream")


class Settings(BaseSettings):
    """The settings of one process, checked at birth and unchangeable.

    Raises:
        SettingsError: A value is wrong, two contradict each other, or a name is unknown.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    redis_url: Annotated[
        str | None,
        Field(repr=False, description="Redis to use (redis://, rediss:// or unix://); none starts an embedded one."),
    ] = None
    database_url: Annotated[
        str | None, Field(repr=False, description="PostgreSQL database that holds the jobs, as a libpq URL.")
    ] = None
    odoo_config: Annotated[
        Path | None,
        Field(description="Odoo's configuration file; the worker then runs the actions of an Odoo database."),
    ] = None
    odoo_database: Annotated[str | None, Field(min_length=1, description="Name of that database.")] = None
    instance: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=100,
            description="Your name for this installation; workers with another name, or none, do not run its jobs.",
        ),
    ] = None
    app: Annotated[str | None, Field(description="Where the actions are declared, as module:attribute.")] = None
    queues: Annotated[
        tuple[str, ...], NoDecode, Field(min_length=1, description="Queues that a worker serves, comma-separated.")
    ] = ("default",)
    children: Annotated[int, Field(ge=1, le=1024, description="Child processes of a worker.")] = 2
    signing_keys: Annotated[
        tuple[tuple[str, bytes], ...],
        NoDecode,
        Field(repr=False, description="Keys of direct jobs as id:secret,id2:secret2; the first signs, all verify."),
    ] = ()
    lease: Annotated[
        float, Field(ge=1, le=3600, description="Seconds after which a silent worker's jobs are taken over.")
    ] = 15.0
    renew: Annotated[float, Field(gt=0, description="Seconds between two renewals of leases; at most lease / 3.")] = 3.0
    redis_timeout: Annotated[float, Field(gt=0, le=60, description="Seconds that Redis has for an answer.")] = 1.0
    publish_timeout: Annotated[
        float, Field(ge=0, le=10, description="Seconds that a caller waits at most for a publish after its commit.")
    ] = 0.2
    drain_timeout: Annotated[
        float, Field(ge=0, description="Seconds that a stopping worker waits for its running jobs.")
    ] = 30.0
    hard_limit: Annotated[float, Field(gt=0, description="Seconds after which a running job is killed.")] = 1800.0
    nice: Annotated[int, Field(ge=-20, le=19, description="Niceness of the children.")] = 10
    idle_cpu_only: Annotated[
        bool,
        Field(
            description="Children, and the programs that they start, run only while nothing else wants the processor."
        ),
    ] = False
    child_max_jobs: Annotated[int, Field(ge=1, description="Jobs after which a child is replaced.")] = 10_000
    child_max_memory_mb: Annotated[int, Field(ge=16, description="MiB after which a child is replaced.")] = 1024
    reconcile_interval: Annotated[
        float, Field(gt=0, le=60, description="Seconds between two comparisons of Redis with the newest rows.")
    ] = 1.0
    done_retention: Annotated[float, Field(ge=0, description="Days for which done and cancelled jobs are kept.")] = 30.0
    failed_retention: Annotated[
        float | None, Field(ge=0, description="Days for which failed jobs are kept; none keeps them for ever.")
    ] = None
    prefetch_ms: Annotated[
        int, Field(ge=0, le=10_000, description="Milliseconds of measured work held for each child in advance.")
    ] = 100
    batch_ms: Annotated[
        int, Field(ge=0, le=1000, description="Milliseconds of measured work sent to a child in one message.")
    ] = 10
    recovery_period: Annotated[
        float,
        Field(ge=0, le=3600, description="Seconds after an unclean end in which a worker starts one job at a time."),
    ] = 60.0
    user: Annotated[str | None, Field(description="User that root becomes; none stays root.")] = "nobody"
    data_dir: Annotated[
        Path,
        Field(
            default_factory=lambda found: default_data_dir(found.get("user")),
            description="Folder of the embedded Redis, keys and locks.",
        ),
    ]
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")] = (
        "info"
    )
    log_format: Annotated[Literal["text", "json"], Field(description="How a log line is written.")] = "text"

    quiet_jobs: Annotated[bool, Field(description="Log no line that tells how a job, or an attempt at one, ended.")] = (
        False
    )

    def __init__(self, **given: Any) -> None:
        _refuse_unknown_variables()
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from None  # its dump would show secrets

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword, environment, file: in this order, and nothing else."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _FileSource(settings_cls)

    @field_validator(
        "redis_url", "database_url", "app", "odoo_config", "odoo_database", "failed_retention", "user", mode="before"
    )
    @classmethod
    def _none(cls, value: object) -> object:
        return None if value == "none" else value  # the environment has no other way to say so

    @field_validator("queues", mode="before")
    @classmethod
    def _split_queues(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("queues")
    @classmethod
    def _check_queues(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for name in value:
                check_queue(name)
        except InvalidName as error:
            raise ValueError(str(error)) from None
        if len(set(value)) != len(value):
            raise ValueError("each queue may be named once")
        return value

    @field_validator("signing_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys = []
        for part in value.split(","):
            key_id, colon, secret = part.strip().partition(":")
            if not (key_id and colon and secret):
                raise ValueError("expected id:secret, several separated by commas")
            keys.append((key_id, secret.encode()))
        return tuple(keys)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected a URL that begins with redis://, rediss:// or unix://")
        return value

    @field_validator("app")
    @classmethod
    def _check_app(cls, value: str | None) -> str | None:
        module, colon, attribute = (value or "a:b").partition(":")
        if not (module and colon and attribute):
            raise ValueError("expected module:attribute, for example myapp.jobs:actions")
        return value

    @field_validator("data_dir", "odoo_config")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.renew * 3 > self.lease:
            raise ValueError(
                f"renew={self.renew:g} is too rare for lease={self.lease:g}: expected at most a third of it, "
                "so that two lost renewals cost no job; lower renew or raise lease"
            )
        if self.odoo_database is not None and self.odoo_config is None:
            raise ValueError("odoo_database is given without odoo_config; give the path of Odoo's configuration file")
        if self.app is not None and self.odoo_config is not None:
            raise ValueError("app and odoo_config are both given; a worker runs one application: leave one out")
        return self


class _FileSource(PydanticBaseSettingsSource):
    """The settings file, if there is one; beside Odoo its configuration file."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Unused: :meth:`__call__` gives all values at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Return the file's values; raise :class:`~sidestream.errors.SettingsError` when it cannot be read."""
        odoo = self.current_state.get("odoo_config")
        named = os.environ.get(CONFIG_VARIABLE)
        if odoo not in (None, "none"):
            if named is not None:
                raise SettingsError(
                    f"The settings file {named} and Odoo's configuration file {odoo} are both named; "
                    f"leave --config and {CONFIG_VARIABLE} out: settings stand in the latter's section [sidestream]."
                )
            return settings_section(Path(str(odoo)).expanduser())
        path = Path(named or CONFIG_FILE)
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if named is None:
                return {}
            raise SettingsError(f"The settings file {named} does not exist; correct {CONFIG_VARIABLE}.") from None
        except (OSError, ValueError) as error:
            raise SettingsError(f"The settings file {path} cannot be read: {error}.") from error


def _refuse_unknown_variables() -> None:
    """A misspelt variable would be silently without effect."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | _NOT_SETTINGS
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known and not _KUBERNETES.search(name):
            raise SettingsError(f"The environment variable {name} is no setting; correct or unset it.")


def _sentence(error: ValidationError) -> str:
    """Return the first thing that is wrong as one sentence, without any value that may be secret."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = str(first["loc"][0]) if first["loc"] else ""
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(Settings.model_fields))
        return f"There is no setting {where!r}; settings are: {known}."
    if not where:
        return f"{said}."
    field = Settings.model_fields.get(where)
    shown = f"={first['input']!r:.60}" if field is not None and field.repr else ""
    meaning = "" if field is None else f" ({str(field.description).rstrip('.')})"
    return f"The setting {where}{shown} is wrong{meaning}: {said[:1].lower() + said[1:].rstrip('.')}."

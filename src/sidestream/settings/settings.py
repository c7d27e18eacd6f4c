"""Declare every setting once: its name, default, meaning and check.

The first source that has a value wins: keyword, environment (``SIDESTREAM_LEASE=10s``), settings file, default. The
file is the TOML file that ``SIDESTREAM_CONFIG`` names, else ``sidestream.toml`` in the current folder; with
``odoo_config`` it is the section ``[sidestream]`` of that file. A duration or a size may be a text or a number; code
sees seconds and bytes.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from sidestream.errors import InvalidName, SettingsError
from sidestream.job.durations import format_duration, parse_duration
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
"""Variables with our prefix that are not settings: settings file, crash points, mark of a worker's processes."""


Duration = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds, given as a number or as a text such as 15s or 30d."""
DAY = 86400.0
MIB = 1 << 20


def default_data_dir(user: str | None) -> Path:
    """Return the data folder of ``user``, whom root becomes, or of the current user.

    Both accounts then find the same embedded server. The folder is ``/var/lib/sidestream`` for root that stays root,
    because nobody else may enter root's home, and for users without a home.
    """
    if os.geteuid() != 0:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "sidestream"
    home = None if user is None else account(user).home
    return home / ".local" / "share" / "sidestream" if home and home.is_dir() else Path("/var/lib/sidestream")


class Settings(BaseSettings):
    """Hold the settings of one process, checked when created and immutable.

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
        str | None,
        Field(min_length=1, repr=False, description="PostgreSQL database that holds the jobs, as a libpq URL."),
    ] = None
    odoo_config: Annotated[
        Path | None,
        Field(description="Odoo's configuration file; the worker then runs the actions of an Odoo database."),
    ] = None
    odoo_database: Annotated[str | None, Field(min_length=1, description="Name of the Odoo database.")] = None
    instance: Annotated[
        str | None,
        Field(
            pattern=r"^\P{C}+$",
            max_length=100,
            description="Your name for this installation (printable characters); workers with another name, or none, "
            "do not run its jobs.",
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
        Duration, Field(ge=1, le=3600, description="Time after which the jobs of a silent worker are taken over.")
    ] = 15.0
    renew_interval: Annotated[
        Duration, Field(gt=0, description="Time between two renewals of the leases; at most lease / 3.")
    ] = 3.0
    redis_timeout: Annotated[
        Duration, Field(gt=0, le=60, description="Time that a worker or a client waits for an answer of Redis.")
    ] = 1.0
    publish_timeout: Annotated[
        Duration, Field(ge=0, le=10, description="Longest time that a caller waits for the publish after its commit.")
    ] = 0.2
    drain_timeout: Annotated[
        Duration, Field(ge=0, description="Time that a stopping worker waits for its running jobs.")
    ] = 30.0
    hard_limit: Annotated[Duration, Field(gt=0, description="Time after which a running job is killed.")] = 1800.0
    nice: Annotated[int, Field(ge=-20, le=19, description="Niceness of the children.")] = 10
    idle_cpu_only: Annotated[
        bool, Field(description="Run the children, and the programs that they start, only when the processor is idle.")
    ] = False
    child_max_jobs: Annotated[int, Field(ge=1, description="Jobs after which a child is replaced.")] = 10_000
    child_max_memory: Annotated[
        ByteSize, Field(ge=16 * MIB, description="Peak memory after which a child is replaced.")
    ] = ByteSize(1024 * MIB)
    reconcile_interval: Annotated[
        Duration, Field(gt=0, le=60, description="Time between two comparisons of Redis with the newest rows.")
    ] = 1.0
    done_retention: Annotated[Duration, Field(ge=0, description="Time for which done and cancelled jobs are kept.")] = (
        30 * DAY
    )
    failed_retention: Annotated[
        Duration | None, Field(ge=0, description="Time for which failed jobs are kept; none keeps them forever.")
    ] = None
    prefetch: Annotated[
        Duration, Field(ge=0, le=10, description="Measured work that is held in advance for each child.")
    ] = 0.1
    batch: Annotated[
        Duration, Field(ge=0, le=1, description="Measured work that is sent to a child in one message.")
    ] = 0.01
    recovery_period: Annotated[
        Duration,
        Field(ge=0, le=3600, description="Time after an unclean end in which a worker starts one job at a time."),
    ] = 60.0
    user: Annotated[str | None, Field(description="User that root becomes; none stays root.")] = "nobody"
    data_dir: Annotated[
        Path,
        Field(
            default_factory=lambda found: default_data_dir(found.get("user")),
            description="Folder of the embedded Redis, keys and locks.",
        ),
    ]
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Lowest level: debug, info, warning, error.")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Field(description="Format of a log line: text or json.")] = "text"

    quiet_jobs: Annotated[bool, Field(description="Log no line for the end of a job or an attempt.")] = False

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
        """Read keywords, then the environment, then the file, and nothing else."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _FileSource(settings_cls)

    @field_validator(
        "redis_url", "database_url", "app", "odoo_config", "odoo_database", "failed_retention", "user", mode="before"
    )
    @classmethod
    def _none(cls, value: object) -> object:
        return None if value == "none" else value  # an environment variable cannot be None

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
        try:
            urlsplit(value or "").port  # noqa: B018  # raises
        except ValueError:  # its text may hold a part of the password
            raise ValueError("expected a port from 0 to 65535, and special characters of the password as %XX") from None
        return value

    @field_validator("app")
    @classmethod
    def _check_app(cls, value: str | None) -> str | None:
        module, colon, attribute = ("a:b" if value is None else value).partition(":")
        if not (module and colon and attribute):
            raise ValueError("expected module:attribute, for example myapp.jobs:actions")
        return value

    @field_validator("data_dir", "odoo_config")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.renew_interval * 3 > self.lease:
            raise ValueError(
                f"renew_interval={format_duration(self.renew_interval)} is too long for "
                f"lease={format_duration(self.lease)}: expected at most a third of it, so that two lost renewals cost "
                "no job; lower renew_interval or raise lease"
            )
        if self.odoo_database is not None and self.odoo_config is None:
            raise ValueError("odoo_database is given without odoo_config; give the path of Odoo's configuration file")
        if self.app is not None and self.odoo_config is not None:
            raise ValueError("app and odoo_config are both given; a worker runs one application: leave one out")
        return self


class _FileSource(PydanticBaseSettingsSource):
    """Read the settings file, or the section of Odoo's configuration file."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Do nothing: :meth:`__call__` returns all values at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Return the file's values; raise SettingsError if it cannot be read."""
        odoo = self.current_state.get("odoo_config")
        named = os.environ.get(CONFIG_VARIABLE)
        if odoo not in (None, "none"):
            if named is not None:
                raise SettingsError(
                    f"The settings file {named} and Odoo's configuration file {odoo} are both named; "
                    f"leave --config and {CONFIG_VARIABLE} out, and use the section [sidestream] of the latter."
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
    """Refuse an unknown variable, which would otherwise have no effect and no message."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | _NOT_SETTINGS
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known and not _KUBERNETES.search(name):
            listed = ", ".join(sorted(Settings.model_fields))
            raise SettingsError(
                f"The environment variable {name} is not a setting; correct or unset it. After {PREFIX} expected one "
                f"of: {listed}."
            )


def _sentence(error: ValidationError) -> str:
    """Return the first fault as one sentence, without any value that may be secret."""
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

"""Implement ``records.enqueue(**options).method(*args)``; publish after the commit."""

import json
import logging
import sys
import threading
import uuid
import weakref
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pytz
from psycopg2 import errors
from psycopg2.extensions import make_dsn

from sidestream import (
    JOB_OPTIONS,
    InvalidJob,
    Job,
    Jobs,
    Settings,
    SettingsError,
    SidestreamError,
    Unique,
    UnknownAction,
    UnsupportedOption,
    bind_arguments,
    build_job,
    declared,
    render_template,
)

from odoo import SUPERUSER_ID, models, sql_db, tools

from .serialization import decode, encode

_logger = logging.getLogger(__name__)

OPTIONS = (*JOB_OPTIONS, "split")
INLINE_KEY = "sidestream_inline"
"""Context key. With :data:`INLINE` as its value, actions run immediately instead of as jobs, for tests and imports."""
UNUSED = "sidestream.unused"


class _Inline:
    """A value that JSON cannot express, so that no context that arrives over RPC contains it."""

    def __repr__(self):
        return "INLINE"


INLINE = _Inline()
"""``records.with_context(sidestream_inline=INLINE).enqueue().method()`` calls the method immediately."""

ODOO_ERRORS = (
    errors.ReadOnlySqlTransaction,
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.InFailedSqlTransaction,
)
"""Errors that Odoo itself handles: it repeats the request, on a read-write cursor or after a delay. The last one means
that the caller continued after an error of PostgreSQL."""

_lock = threading.Lock()
_jobs = {}


def jobs_of(database):
    """Return this process's ``Jobs`` of a database; it connects at the first job."""
    with _lock:
        found = _jobs.get(database)
        if found is None:
            found = _jobs[database] = _connected(database)
        return found


def _connected(database):
    try:
        return Jobs(settings_of(database))
    except SettingsError as error:  # a wrong setting is no reason to refuse a user's click
        _logger.error("Jobs of database %s are not published; a worker finds them in PostgreSQL: %s", database, error)
        return Jobs.reading(lambda: settings_of(database))


def forget(database):
    """Read the database's identity again at the next job."""
    with _lock:
        found = _jobs.get(database)
    if found is not None:
        found.forget_databases()


def settings_of(database):
    """Return the settings of this database from Odoo's configuration file or the environment.

    If they name no PostgreSQL server, use the one of this Odoo, which its command line may have set.
    """
    config = tools.config["config"]
    given = {"odoo_config": config, "odoo_database": database} if config and Path(config).is_file() else {}
    settings = Settings(**given)
    if settings.database_url is not None:
        return settings
    _name, found = sql_db.connection_info_for(database)
    found["dbname"] = found.pop("database")
    del found["application_name"]
    return Settings(**given, database_url=make_dsn(**found))


class Enqueuer:
    """The result of ``records.enqueue()``; its methods are the actions of the model."""

    __slots__ = ("__mark", "__options", "__records", "__weakref__")  # an action may have any other name

    def __init__(self, records, options):
        for name in options:
            if name not in OPTIONS:
                raise UnsupportedOption(
                    f"There is no option {name!r} for enqueue(); the options are {', '.join(OPTIONS)}."
                )
        self.__records = records
        self.__options = options
        self.__mark = object()
        frame = sys._getframe(2)  # who called enqueue()
        _unused(records.env.cr)[self.__mark] = (weakref.ref(self), frame.f_code.co_filename, frame.f_lineno)

    def __call__(self, *args, **kwargs):
        _unused(self.__records.env.cr).pop(self.__mark, None)
        raise InvalidJob("enqueue() was called without a method's name; write records.enqueue().method(...).")

    def __getattr__(self, method):
        if method.startswith("__"):
            raise AttributeError(method)  # Python's own protocols, such as copying
        records, options = self.__records, self.__options
        action = declared(type(records), method)
        if action is None:
            _unused(records.env.cr).pop(self.__mark, None)
            raise UnknownAction(_refusal(records, method))

        def enqueue(*args, **kwargs):
            _unused(records.env.cr).pop(self.__mark, None)
            bind_arguments(f"{records._name}.{method}", getattr(type(records), method), args, kwargs)
            return _enqueue(records, method, action, args, kwargs, dict(options))

        return enqueue


def _unused(cr):
    """Return the enqueuers of this transaction of which no method was called yet, by mark."""
    unused = cr.precommit.data.get(UNUSED)
    if unused is None:
        unused = cr.precommit.data[UNUSED] = {}

        @cr.precommit.add
        def refuse():  # one that is still referenced may be used later
            for enqueuer, path, line in cr.precommit.data.pop(UNUSED).values():
                if enqueuer() is None:
                    raise InvalidJob(
                        f"enqueue() at {Path(path).name}:{line} names no method, so nothing was enqueued; write "
                        "records.enqueue().method(...)."
                    )

    return unused


def _refusal(records, method):
    if not hasattr(type(records), method):
        return f"{records._name} has no method {method!r}; jobs of it run actions, which are declared with @action."
    return f"The method {method!r} of {records._name} cannot run in the background: it is not declared with @action."


def _enqueue(records, method, action, args, kwargs, options):
    env = records.env
    jobs = env["sidestream.job"]
    company = env.company
    later = options.get("run_at") is not None or options.get("delay")
    off = company and not later and not company._sidestream_is_enabled(company.id)
    if _is_inline(env) or off:
        _call_inline(records, method, action, args, kwargs, options.get("split"))
        return jobs
    jobs_to_insert = list(_build(records, method, action, args, kwargs, options))
    inserted = _insert(env.cr, jobs_to_insert)
    _publish_after_commit(env.cr, inserted.publications)
    return jobs.browse(dict.fromkeys(inserted.ids))  # duplicates within this call are the same job


def _is_inline(env):
    given = env.context.get(INLINE_KEY)
    if given is not None and given is not INLINE:
        _logger.warning("The context key %s is ignored: only sidestream's INLINE switches it on.", INLINE_KEY)
    return given is INLINE


def _insert(cr, to_insert):
    """Insert jobs. Raise errors that Odoo handles (a read-only cursor, a conflict) unchanged."""
    try:
        return jobs_of(cr.dbname).insert(cr.connection, to_insert)
    except SidestreamError as error:
        if isinstance(error.__cause__, ODOO_ERRORS):
            raise error.__cause__ from None
        raise


def _parts(records, split):
    if split is None:
        return [records]
    if not isinstance(split, int) or isinstance(split, bool) or split < 1:
        raise InvalidJob(f"split={split!r} is not allowed: expected the number of records per job, 1 or more.")
    return [records[at : at + split] for at in range(0, len(records), split)]


def _call_inline(records, method, action, args, kwargs, split):
    """Run the action in the caller's transaction, with the user and arguments of the job.

    An action that commits in parts only flushes, because the caller's own work must not be committed yet.
    """
    env = _inline_env(records.env, action)
    encoded, named = _encoded(args, kwargs)
    for part in _parts(records.with_env(env), split):
        arguments, options = decode(env, encoded), decode(env, named)
        with one_transaction(env.cr, action):
            result = getattr(part, method)(*arguments, **options)
        if steps := action.steps_of(f"{records._name}.{method}", result):
            run_steps(steps, f"inline:{uuid.uuid4()}")


def _inline_env(env, action):
    """Return an environment with the user, companies and context of a job."""
    user_id = _user_id(env, action)
    context = _context(env, user_id)
    context.pop("company", None)  # the first allowed company, or else the user's own
    if _is_inline(env):
        context[INLINE_KEY] = INLINE  # also for the jobs that the action enqueues
    return env(user=user_id, context=context, su=user_id == SUPERUSER_ID)


def _encoded(args, kwargs):
    return encode(list(args)), {name: encode(one, name) for name, one in kwargs.items()}


@contextmanager
def one_transaction(cr, action):
    """Replace ``cr.commit()`` of an action with partial commits by a flush, outside a worker."""
    if action is None or action.commits != "relock":
        yield
        return
    before = vars(cr).get("commit")
    cr.commit = cr.flush
    try:
        yield
    finally:
        del cr.commit
        if before is not None:
            cr.commit = before


def run_steps(steps, key):
    """Run the generator of a three-step action in one transaction, for inline calls and tests."""
    try:
        call = next(steps)
    except StopIteration:
        return  # the action has nothing to call
    if not callable(call):
        raise SidestreamError(
            f"A three-step action yielded {call!r:.60}; expected a function that is called with the idempotency key."
        )
    answer = call(key)
    try:
        steps.send(answer)
    except StopIteration:
        return
    raise SidestreamError("A three-step action yielded twice; expected one call; split it into two jobs.")


def _build(records, method, action, args, kwargs, options):
    env = records.env
    parts = _parts(records, options.get("split"))
    if any(not isinstance(id_, int) for id_ in records._ids):
        raise InvalidJob(f"{records._name} has records that are not saved yet; save them before enqueue().")
    user_id = _user_id(env, action)
    guard = getattr(env.cr, "sidestream", None)
    requested_by = (guard and guard.requested_by) or env.uid or None
    context = json.dumps(_context(env, user_id))
    given = {name: value for name, value in options.items() if name != "split" and value is not None}
    encoded, named = _encoded(args, kwargs)
    now = datetime.now(UTC)
    shared = all(name in given or getattr(action, name) is None for name in ("key", "limit", "group", "unique"))
    alike = None
    for part in parts:
        about = {
            "args": ([*part._ids], *encoded),
            "records": (records._name, tuple(dict.fromkeys(part._ids))) if part else None,
        }
        if alike is not None:
            yield Job(**(alike | about))  # dataclasses.replace takes twice as long, which matters for 10,000 jobs
            continue
        job = build_job(
            f"{records._name}.{method}",
            about["args"],
            named,
            now=now,
            defaults=_declared_options(part, action, given),
            local="UTC",  # as for Odoo's own datetimes
            **given,
        )
        job = replace(
            job,
            company_id=env.company.id or None,
            user_id=user_id,
            requested_by=requested_by if requested_by != user_id else None,
            context=context,
            **about,
        )
        if shared:
            alike = {field.name: getattr(job, field.name) for field in fields(job)}
        yield job


def _context(env, user_id):
    """Return the valid language, time zone and companies for the worker's environment.

    The context may come from any RPC caller, so unknown values are left out.
    """
    context = {}
    lang, time_zone = env.context.get("lang"), env.context.get("tz")
    if isinstance(lang, str) and env["res.lang"]._get_data(code=lang):
        context["lang"] = lang
    if isinstance(time_zone, str) and time_zone in pytz.all_timezones_set:
        context["tz"] = time_zone
    if env.company:
        context["company"] = env.company.id
    allowed = _allowed_companies(env, user_id)
    if allowed:
        context["allowed_company_ids"] = allowed
    return context


def _allowed_companies(env, user_id):
    """Return the ids of the user's companies to work in, the main one first; empty means all."""
    allowed = [one for one in env.context.get("allowed_company_ids") or () if isinstance(one, int)]
    if user_id == env.uid and (allowed or user_id != SUPERUSER_ID):
        return allowed
    if not allowed:  # as in a scheduled action or over RPC: use the caller's companies, not the user's
        allowed = dict.fromkeys((env.company | env.companies)._ids)
    if user_id == SUPERUSER_ID:
        return list(allowed)
    others = env["res.users"].sudo().browse(user_id)._get_company_ids()  # a service user works in the companies of both
    return [one for one in allowed if one == env.company.id or one in others]


def _user_id(env, action):
    if action.run_as == "user":
        if not env.uid:
            raise InvalidJob("The job has no user to run as; enqueue it with_user(somebody).")
        return env.uid
    if action.run_as == "superuser":
        return SUPERUSER_ID
    user = env.ref(action.run_as, raise_if_not_found=False)
    if not user or user._name != "res.users":
        raise InvalidJob(f"run_as={action.run_as!r} names no user of this database; correct the action's declaration.")
    return user.id


def _declared_options(records, action, given):
    """Return the options of the declaration that the call does not set, for ``records``."""
    company = records.env.company.id
    found = {"queue": action.queue, "priority": action.priority, "expires_in": action.expires_in}
    for name in ("key", "limit", "group"):
        if name not in given:
            found[name] = declared_text(records, name, getattr(action, name))
    if found.get("group") is None and company:
        found["group"] = f"company:{company}"
    unique = None if "unique" in given else action.unique
    if isinstance(unique, Unique):
        unique = replace(unique, key=declared_text(records, "unique", unique.key))
    elif unique is not None:
        unique = declared_text(records, "unique", unique)
    found["unique"] = unique
    return found


def declared_text(records, what, template):
    """Return the key, limit, group or unique text of a job on ``records``, or None."""
    if template is None:
        return None
    if callable(template):
        return template(records)
    return render_template(what, template, lambda field: _one_value(records, what, field, template))


def _one_value(records, what, path, template):
    try:
        found = records._ids if path == "id" else records.sudo().mapped(path)
    except (KeyError, AttributeError):
        raise InvalidJob(f"The {what} {template!r} names {path!r}, which is not a field of {records._name}.") from None
    if isinstance(found, models.BaseModel):
        found = found.ids
    values = {"none" if one is False or one is None else str(one) for one in found} or {"none"}
    if len(values) > 1:
        raise InvalidJob(
            f"The {what} {template!r} has {len(values)} values for {path!r} over {len(records)} records; "
            "enqueue with split=1."
        )
    return values.pop()


def _publish_after_commit(cr, publications):
    if not publications:
        return
    guard = getattr(cr, "sidestream", None)
    if guard is not None and guard.follow_ups is not None:  # inside a job: its worker publishes after the commit
        guard.follow_ups += publications
        return
    waiting = cr.postcommit.data.setdefault("sidestream.publications", [])
    if not waiting:
        database = cr.dbname

        @cr.postcommit.add
        def publish():
            try:
                jobs_of(database).hand_over(waiting)
            except Exception:  # the user's transaction is committed, and a worker finds the rows
                _logger.exception("Jobs were not published; workers find them in PostgreSQL within seconds.")

    waiting += publications

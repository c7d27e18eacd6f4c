"""``records.enqueue(**options).method(*args)``: from a call to rows in this transaction, published after its commit."""

import json
import logging
import os
import threading
from datetime import UTC, datetime
from string import Formatter

from odoo import SUPERUSER_ID, models, tools

from sidestream import InvalidJob, Jobs, Settings, UnknownAction, UnsupportedOption, build_job, declared

from .values import encode

_logger = logging.getLogger(__name__)

OPTIONS = ("delay", "key", "queue", "run_at", "split")
CONTEXT = ("lang", "tz", "allowed_company_ids")
"""What of the caller's context a job runs with; the user and the company stand in columns of their own."""
INLINE = "sidestream_inline"
"""Context key (true): the method is called at once instead. For tests, imports, and companies that switched off."""

_lock = threading.Lock()
_jobs = {}


def jobs_of(database):
    """Return this process's :class:`sidestream.Jobs`; nothing is connected before the first job."""
    with _lock:
        found = _jobs.get(database)
        if found is None:
            found = _jobs[database] = Jobs(_settings(database))
        return found


def _settings(database):
    config = tools.config["config"]
    if config and os.path.isfile(config):
        return Settings(odoo_config=config, odoo_database=database)
    return Settings()


class Enqueuer:
    """What ``records.enqueue()`` answers: its methods are the declared actions of the records' model."""

    __slots__ = ("_options", "_records")

    def __init__(self, records, options):
        for name in options:
            if name not in OPTIONS:
                raise UnsupportedOption(
                    f"There is no option {name!r} for enqueue(); the options are {', '.join(OPTIONS)}."
                )
        self._records = records
        self._options = options

    def __getattr__(self, method):
        records = self._records
        action = declared(type(records), method)
        if action is None:
            raise UnknownAction(
                f"The method {method!r} of {records._name} cannot run in the background: it is not declared with "
                "@action."
            )

        def enqueue(*args, **kwargs):
            return _enqueue(records, method, action, args, kwargs, dict(self._options))

        return enqueue


def _enqueue(records, method, action, args, kwargs, options):
    jobs = records.env["sidestream.job"].sudo()
    if records.env.context.get(INLINE) or not records.env.company.sudo().sidestream_enabled:
        _call_inline(records, method, action, args, kwargs)
        return jobs
    built = list(_build(records, method, action, args, kwargs, options))
    inserted = _client(records.env).insert(records.env.cr.connection, built)
    _publish_after_commit(records.env.cr, inserted.publications)
    return jobs.browse(inserted.ids).with_env(records.env)


def _client(env):
    return jobs_of(env.cr.dbname)


def _call_inline(records, method, action, args, kwargs):
    """Do it here and now, in the caller's transaction and with the caller's rights."""
    result = getattr(records, method)(*args, **kwargs)
    if action.three_step:
        run_steps(result, f"inline:{records._name}:{records.ids}")


def run_steps(steps, key):
    """Run a three-step action's generator in one transaction; for inline calls and tests."""
    try:
        call = next(steps)
        steps.send(call(key))
    except StopIteration:
        return


def _build(records, method, action, args, kwargs, options):
    env = records.env
    split = options.pop("split", None)
    if split is not None and (not isinstance(split, int) or isinstance(split, bool) or split < 1):
        raise InvalidJob(f"split={split!r} is not allowed: expected how many records a job gets, 1 or more.")
    if any(not isinstance(id_, int) for id_ in records._ids):
        raise InvalidJob(f"{records._name} has records that are not saved yet; save them before enqueue().")
    parts = [records]
    if split is not None:
        parts = [records[at : at + split] for at in range(0, len(records), split)]
    user_id = _user_id(env, action)
    context = json.dumps({name: env.context[name] for name in CONTEXT if name in env.context})
    given_key = options.pop("key", None)
    encoded, named = encode(list(args)), {name: encode(one, name) for name, one in kwargs.items()}
    now = datetime.now(UTC)
    queue = options.pop("queue", None) or action.queue
    run_at = options.pop("run_at", None)
    if isinstance(run_at, datetime) and run_at.tzinfo is None:
        run_at = run_at.replace(tzinfo=UTC)  # as Odoo's own datetimes are
    for part in parts:
        key = given_key if given_key is not None else action_key(part, action)
        job = build_job(
            f"{records._name}.{method}",
            [list(part._ids), *encoded],
            named,
            now=now,
            queue=queue,
            key=key,
            run_at=run_at,
            delay=options.get("delay"),
        )
        yield type(job)(
            job.action, job.args, job.kwargs, job.queue, job.key, job.run_at,
            company_id=env.company.id, user_id=user_id, context=context,
            records=(records._name, tuple(part._ids)) if part else None,
        )  # fmt: skip


def _user_id(env, action):
    if action.run_as == "user":
        return env.uid
    if action.run_as == "superuser":
        return SUPERUSER_ID
    user = env.ref(action.run_as, raise_if_not_found=False)
    if not user or user._name != "res.users":
        raise InvalidJob(f"run_as={action.run_as!r} names no user of this database; correct the action's declaration.")
    return user.id


def action_key(records, action):
    """Return the ordering key of a job on ``records``, or None."""
    if action.key is None:
        return None
    if callable(action.key):
        return action.key(records)
    values = {}
    for _, field, _, _ in Formatter().parse(action.key):
        if field:
            values[field] = _one_value(records, field, action.key)
    return "".join(
        text + (values[field] if field else "") for text, field, _, _ in Formatter().parse(action.key)
    )


def _one_value(records, path, key):
    try:
        found = records.sudo().mapped(path) if path != "id" else records.ids
    except KeyError:
        raise InvalidJob(f"The key {key!r} names {path!r}, which {records._name} has not.") from None
    values = {str(one) for one in (found.ids if isinstance(found, models.BaseModel) else found)} or {"none"}
    if len(values) > 1:
        raise InvalidJob(
            f"The key {key!r} has {len(values)} values for {path!r} over {len(records)} records; enqueue with split=1."
        )
    return values.pop()


def _publish_after_commit(cr, publications):
    if not publications:
        return
    guard = getattr(cr, "sidestream", None)
    if guard is not None and guard.follow_ups is not None:  # inside a job: its worker publishes, after its commit
        guard.follow_ups += [(one.reference, one.lane.partition(":")[2], one.due_ms) for one in publications]
        return
    waiting = cr.postcommit.data.setdefault("sidestream.publications", [])
    if not waiting:
        database = cr.dbname

        @cr.postcommit.add
        def publish():
            try:
                jobs_of(database).hand_over(waiting)
            except Exception:  # the user's transaction is committed: a worker finds the rows by itself
                _logger.exception("Jobs were not published; workers find them in a few seconds.")

    waiting += publications

"""For the tests of addons that enqueue: catch the jobs, look at them, run them.

::

    with trap_jobs() as trap:
        order.action_confirm()
    trap.assert_enqueued(order._invoice_and_print, count=1)
    trap.perform()
    self.assertEqual(order.invoice_ids.state, "posted")
"""

import json
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from unittest.mock import patch

from sidestream import declared

from odoo import SUPERUSER_ID
from odoo.modules import module

from .. import enqueuing

__all__ = ["Trap", "TrappedJob", "trap_jobs"]


class _FirstStepIsOver(Exception):
    pass


def _refuse(cr, *args, **kwargs):
    raise AssertionError(
        "A three-step action's call asked the database, but runs outside any transaction: read first what it needs."
    )


def _env_of(job):
    """Return an environment of the job's; of a request that is over (HttpCase), the test's, which sees its rows."""
    env, cr = job.env, job.env.cr
    if cr._closed or cr.closed:  # a TestCursor's "closed" is that of the test's own cursor
        return module.current_test.env(user=env.uid, context=env.context, su=env.su)
    return env


@dataclass(frozen=True)
class TrappedJob:
    """One job as it was enqueued."""

    #: The job's row, in the test's transaction.
    job: Any
    #: What it is about, in the environment of whoever enqueued it.
    records: Any
    method: str
    args: tuple
    kwargs: dict
    #: As they were given: queue, key, run_at, delay, split.
    options: dict
    #: As the job has them.
    queue: str
    key: str | None
    run_at: datetime

    def __str__(self):
        return f"{self.records}.{self.method}(*{self.args!r}, **{self.kwargs!r}) with {self.options!r}"


class Trap:
    """The jobs that were enqueued inside ``trap_jobs()``, in their order."""

    def __init__(self):
        self._performed = 0
        self._open = False
        #: Every :class:`TrappedJob` so far, those of a savepoint or a request that was rolled back included.
        self.jobs = []

    def assert_enqueued(self, method, records=None, *, args=None, kwargs=None, count=None, **options):
        """Assert that such jobs were enqueued, and return them.

        :param method: a method's name, or a record's method (``order.send``), which is name and records at once
        :param records: the records of each such job; left out: any
        :param args: the positional arguments of each such job; left out: any
        :param kwargs: the named arguments of each such job; left out: any
        :param count: how many; left out: at least one
        :param options: the job's queue, key or run_at, or delay and split as they were given
        """
        if callable(method):
            method, records = method.__name__, method.__self__
        there = self._there()
        found = [job for job in there if self._fits(job, method, records, args, kwargs, options)]
        if len(found) != count if count is not None else not found:
            wanted = "at least one job" if count is None else f"{count} jobs"
            all_ = "".join(f"\n  {job}" for job in there) or " none"
            raise AssertionError(
                f"Expected {wanted} of {method!r} (records={records}, args={args}, kwargs={kwargs}, {options}), found "
                f"{len(found)}. Enqueued were:{all_}"
            )
        return found

    def assert_nothing_enqueued(self):
        """Assert that there is no job."""
        if there := self._there():
            raise AssertionError("Expected no job. Enqueued were:" + "".join(f"\n  {job}" for job in there))

    def _there(self):
        """Return the jobs whose rows are there: what was rolled back with a savepoint, or a request, is no job."""
        ids = {}
        for job in self.jobs:
            ids.setdefault(_env_of(job.job).cr, []).append(job.job.id)
        there = set()
        for cr, some in ids.items():
            cr.execute("SELECT id FROM sidestream_job WHERE id = ANY(%s)", [some])
            there.update(id_ for (id_,) in cr.fetchall())
        return [
            replace(job, job=job.job.with_env(_env_of(job.job)), records=job.records.with_env(_env_of(job.records)))
            for job in self.jobs
            if job.job.id in there
        ]

    def perform(self):
        """Run every job that did not run yet, in order, as a worker would: those that come up meanwhile, too.

        User, company, language and records are the job's, rights are checked, and nothing of what the test has in its
        caches is there. Jobs for later run now; an action that commits in parts only flushes. An error is raised as it
        is, and the job's effects are rolled back.
        """
        with self._catching():
            while self._performed < len(self.jobs):
                self._performed += 1
                self._perform(self.jobs[self._performed - 1].job)

    def _perform(self, job):
        env = _env_of(job)(user=SUPERUSER_ID, su=True, context={})
        default_env = env.transaction.default_env
        (default_env or env).invalidate_all()  # writes what waits, forgets what is cached
        env.cr.execute(
            "SELECT id, action, payload, user_id, context, attempts FROM sidestream_job "
            "WHERE id = %s AND state = 'pending'",
            [job.id],
        )
        row = env.cr.fetchone()
        if row is None:
            return  # rolled back, or cancelled: a worker would pass it over, too
        job_id, name, payload, user_id, context, attempts = row
        try:
            with env.cr.savepoint():
                self._call(env["sidestream.job"], name, json.loads(payload), job_id, user_id, context, attempts)
                env.cr.execute(
                    "UPDATE sidestream_job SET state = 'done', ended_at = clock_timestamp() AT TIME ZONE 'UTC' "
                    "WHERE id = %s",
                    [job_id],
                )
        finally:
            env.transaction.default_env = default_env
        env.invalidate_all()

    def _call(self, jobs, name, payload, job_id, user_id, context, attempts):
        model, _, method = name.rpartition(".")
        action = declared(type(jobs.env[model]), method)
        with enqueuing.one_transaction(jobs.env.cr, action):
            result = jobs._sidestream_call(
                name,
                payload["args"],
                payload["kwargs"],
                job_id=job_id,
                user_id=user_id,
                context=context,
                attempt=attempts + 1,
            )
        if action is not None and (steps := action.steps_of(name, result)):
            enqueuing.run_steps(self._as_apart(jobs.env.cr, steps), jobs._sidestream_idempotency_key(job_id))

    @staticmethod
    def _as_apart(cr, steps):
        """Pass three steps on: what the first wrote is gone, as in the worker, and the call has no database."""
        call = None
        with suppress(_FirstStepIsOver), cr.savepoint():
            call = next(steps, None)
            raise _FirstStepIsOver
        if call is None:
            return

        def without_database(key):
            with patch.object(type(cr), "execute", _refuse):
                return call(key)

        answer = yield without_database if callable(call) else call
        with suppress(StopIteration):
            steps.send(answer)
            yield  # it went on to another call

    @staticmethod
    def _fits(job, method, records, args, kwargs, options):
        return (
            job.method == method
            and (records is None or (job.records._name, set(job.records._ids)) == (records._name, set(records._ids)))
            and (args is None or job.args == tuple(args))
            and (kwargs is None or job.kwargs == kwargs)
            and all(
                (getattr(job, name) if name in ("queue", "key") else job.options.get(name)) == value
                for name, value in options.items()
            )
        )

    @contextmanager
    def _catching(self):
        if self._open:  # perform() inside the block
            yield
            return
        enqueue = enqueuing._enqueue

        def catch(records, method, action, args, kwargs, options):
            jobs = enqueue(records, method, action, args, kwargs, options)
            if jobs:
                self._caught(jobs, records, method, args, kwargs, options)
            return jobs

        with (
            patch.object(enqueuing, "_enqueue", catch),
            patch.object(enqueuing, "_publish_after_commit", lambda cr, publications: None),
        ):
            self._open = True
            try:
                yield
            finally:
                self._open = False

    def _caught(self, jobs, records, method, args, kwargs, options):
        jobs.env.cr.execute(
            "SELECT id, payload, queue, key, run_at FROM sidestream_job WHERE id = ANY(%s) ORDER BY id", [jobs.ids]
        )
        for job_id, payload, queue, key, run_at in jobs.env.cr.fetchall():
            part = records.browse(json.loads(payload)["args"][0])
            self.jobs.append(TrappedJob(jobs.browse(job_id), part, method, args, kwargs, options, queue, key, run_at))


@contextmanager
def trap_jobs():
    """Catch what is enqueued inside the block; it yields a :class:`Trap`.

    The jobs have rows in the test's transaction, so that the records' jobs are found and everything is checked as in
    production; the rows go with the test, and nothing is published. ``perform()`` works inside the block and after it.
    """
    trap = Trap()
    with trap._catching():
        yield trap

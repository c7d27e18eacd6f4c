"""Test addons that enqueue: catch the jobs, assert what they are, and run them.

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

from .. import enqueue

__all__ = ["Trap", "TrappedJob", "trap_jobs"]


class _FirstStepDone(Exception):
    pass


def _refuse(cr, *args, **kwargs):
    raise AssertionError(
        "The call of a three-step action used the database, but runs outside any transaction. Read what it needs first."
    )


def _env_of(job):
    """Return the job's environment, or the test's if the job's request (HttpCase) has ended."""
    env, cr = job.env, job.env.cr
    if cr._closed or cr.closed:  # a TestCursor's "closed" is that of the test's own cursor
        return module.current_test.env(user=env.uid, context=env.context, su=env.su)
    return env


@dataclass(frozen=True)
class TrappedJob:
    """A job as it was enqueued."""

    #: The job's row, in the test's transaction.
    job: Any
    #: The job's records, in the environment of the user who enqueued it.
    records: Any
    method: str
    args: tuple
    kwargs: dict
    #: The options of the call: queue, key, run_at, delay, split.
    options: dict
    #: The values of the job.
    queue: str
    key: str | None
    run_at: datetime

    def __str__(self):
        return f"{self.records}.{self.method}(*{self.args!r}, **{self.kwargs!r}) with {self.options!r}"


class Trap:
    """The jobs that were enqueued inside ``trap_jobs()``, in order."""

    def __init__(self):
        self._performed = 0
        self._open = False
        #: Every :class:`TrappedJob` so far, including those of rolled back savepoints and requests.
        self.jobs = []

    def assert_enqueued(self, method, records=None, *, args=None, kwargs=None, count=None, **options):
        """Assert that such jobs were enqueued, and return them.

        :param method: the method's name, or a bound method (``order.send``), which also gives the records
        :param records: the records of each job; default: any
        :param args: the positional arguments of each job; default: any
        :param kwargs: the keyword arguments of each job; default: any
        :param count: the number of jobs; default: at least one
        :param options: the job's queue, key or run_at, or the delay and split of the call
        """
        if callable(method):
            method, records = method.__name__, method.__self__
        there = self._existing()
        found = [job for job in there if self._fits(job, method, records, args, kwargs, options)]
        if len(found) != count if count is not None else not found:
            wanted = "at least one job" if count is None else f"{count} jobs"
            all_ = "".join(f"\n  {job}" for job in there) or " none"
            raise AssertionError(
                f"Expected {wanted} of {method!r} (records={records}, args={args}, kwargs={kwargs}, {options}), found "
                f"{len(found)}. The enqueued jobs are:{all_}"
            )
        return found

    def assert_nothing_enqueued(self):
        """Assert that there is no job."""
        if there := self._existing():
            raise AssertionError("Expected no job. The enqueued jobs are:" + "".join(f"\n  {job}" for job in there))

    def _existing(self):
        """Return the jobs whose rows exist, without those that a savepoint or a request rolled back."""
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
        """Run every job that has not run yet, in order, as a worker would, including jobs that they enqueue.

        Each job runs as its own user, in its company and language, with access rights checked and empty caches.
        Scheduled jobs run now, and an action that commits in parts only flushes. An error is raised unchanged, and the
        effects of its job are rolled back.
        """
        with self._catching():
            while self._performed < len(self.jobs):
                self._performed += 1
                self._perform(self.jobs[self._performed - 1].job)

    def _perform(self, job):
        env = _env_of(job)(user=SUPERUSER_ID, su=True, context={})
        default_env = env.transaction.default_env
        (default_env or env).invalidate_all()  # flush, and clear the caches
        env.cr.execute(
            "SELECT id, action, payload, user_id, context, attempts FROM sidestream_job "
            "WHERE id = %s AND state = 'pending'",
            [job.id],
        )
        row = env.cr.fetchone()
        if row is None:
            return  # rolled back or cancelled: a worker would skip it
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
        with enqueue.one_transaction(jobs.env.cr, action):
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
            enqueue.run_steps(self._as_apart(jobs.env.cr, steps), jobs._sidestream_idempotency_key(job_id))

    @staticmethod
    def _as_apart(cr, steps):
        """Roll the first step back and run the call without a database, as a worker does."""
        call = None
        with suppress(_FirstStepDone), cr.savepoint():
            call = next(steps, None)
            raise _FirstStepDone
        if call is None:
            return

        def without_database(key):
            with patch.object(type(cr), "execute", _refuse):
                return call(key)

        answer = yield without_database if callable(call) else call
        with suppress(StopIteration):
            steps.send(answer)
            yield  # the action yielded another call

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
        original = enqueue._enqueue

        def catch(records, method, action, args, kwargs, options):
            jobs = original(records, method, action, args, kwargs, options)
            if jobs:
                self._caught(jobs, records, method, args, kwargs, options)
            return jobs

        with (
            patch.object(enqueue, "_enqueue", catch),
            patch.object(enqueue, "_publish_after_commit", lambda cr, publications: None),
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
    """Catch the jobs that are enqueued inside the block, and yield a :class:`Trap`.

    The jobs have rows in the test's transaction, so everything is checked as in production. Nothing is published, and
    the rows disappear with the test. ``perform()`` works inside and after the block.
    """
    trap = Trap()
    with trap._catching():
        yield trap

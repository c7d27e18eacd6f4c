"""For the tests of addons that enqueue: ``with trap_jobs(self.env) as trap: ...``, then look at the jobs or run them."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from unittest.mock import patch

from odoo import SUPERUSER_ID

from sidestream import declared

from .. import enqueuing

__all__ = ["TrappedJob", "Trap", "trap_jobs"]


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

    def __init__(self, env):
        self._env = env
        self._performed = 0
        #: Every :class:`TrappedJob` so far.
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
        found = [job for job in self.jobs if self._fits(job, method, records, args, kwargs, options)]
        if len(found) != count if count is not None else not found:
            wanted = "at least one job" if count is None else f"{count} jobs"
            all_ = "".join(f"\n  {job}" for job in self.jobs) or " none"
            raise AssertionError(
                f"Expected {wanted} of {method!r} (records={records}, args={args}, kwargs={kwargs}, {options}), found "
                f"{len(found)}. Enqueued were:{all_}"
            )
        return found

    def assert_nothing_enqueued(self):
        """Assert that there is no job."""
        if self.jobs:
            raise AssertionError("Expected no job. Enqueued were:" + "".join(f"\n  {job}" for job in self.jobs))

    def perform(self):
        """Run every job that did not run yet, in order, as a worker would: those that come up meanwhile, too.

        User, company, language and records are the job's, rights are checked, and nothing of what the test has in its
        caches is there. Jobs for later run now. An error is raised as it is, and the job's effects are rolled back.
        """
        while self._performed < len(self.jobs):
            self._performed += 1
            self._perform(self.jobs[self._performed - 1].job)

    def _perform(self, job):
        env = self._env
        env.invalidate_all()  # writes what waits, forgets what is cached
        env.cr.execute(
            "SELECT id, action, payload, user_id, context, attempts FROM sidestream_job "
            "WHERE id = %s AND state = 'open'",
            [job.id],
        )
        row = env.cr.fetchone()
        if row is None:
            return  # rolled back, or cancelled: a worker would pass it over, too
        job_id, name, payload, user_id, context, attempts = row
        default_env = env.transaction.default_env
        try:
            with env.cr.savepoint():
                self._call(name, json.loads(payload), job_id, user_id, context, attempts)
                env.cr.execute(
                    "UPDATE sidestream_job SET state = 'done', ended_at = clock_timestamp() AT TIME ZONE 'UTC' "
                    "WHERE id = %s",
                    [job_id],
                )
        finally:
            env.transaction.default_env = default_env
        env.invalidate_all()

    def _call(self, name, payload, job_id, user_id, context, attempts):
        jobs = self._env(user=SUPERUSER_ID, su=True, context={})["sidestream.job"]
        model, _, method = name.rpartition(".")
        result = jobs._sidestream_call(
            name,
            payload["args"],
            payload["kwargs"],
            job_id=job_id,
            user_id=user_id,
            context=context,
            attempt=attempts + 1,
        )
        action = declared(type(jobs.env[model]), method)
        if action is not None and action.three_step:
            enqueuing.run_steps(result, jobs._sidestream_idempotency_key(job_id))

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

    def _caught(self, jobs, records, method, args, kwargs, options):
        jobs.env.cr.execute(
            "SELECT id, payload, queue, key, run_at FROM sidestream_job WHERE id = ANY(%s) ORDER BY id", [jobs.ids]
        )
        for job_id, payload, queue, key, run_at in jobs.env.cr.fetchall():
            part = records.browse(json.loads(payload)["args"][0])
            self.jobs.append(
                TrappedJob(jobs.browse(job_id), part, method, args, kwargs, options, queue, key, run_at)
            )


@contextmanager
def trap_jobs(env):
    """Catch what is enqueued inside the block; it yields a :class:`Trap`.

    The jobs have rows in the test's transaction, so that the records' jobs are found and everything is checked as in
    production; the rows go with the test, and nothing is published. ``perform()`` works inside the block and after it.
    """
    trap = Trap(env)
    enqueue = enqueuing._enqueue

    def catch(records, method, action, args, kwargs, options):
        jobs = enqueue(records, method, action, args, kwargs, options)
        if jobs:
            trap._caught(jobs, records, method, args, kwargs, options)
        return jobs

    with (
        patch.object(enqueuing, "_enqueue", catch),
        patch.object(enqueuing, "_publish_after_commit", lambda cr, publications: None),
    ):
        yield trap

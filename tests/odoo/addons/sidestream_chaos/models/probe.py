"""Faulty actions for tests/odoo/test_executor.py."""

import os
import time
from pathlib import Path

import requests
from odoo import fields, models
from odoo.addons.sidestream import GiveUp, RetryPolicy, action
from odoo.exceptions import AccessError, MissingError, RedirectWarning, UserError, ValidationError

ONCE = RetryPolicy(max_attempts=1)


class SidestreamJob(models.Model):
    _inherit = "sidestream.job"

    def _on_failed(self):
        super()._on_failed()
        self.env["chaos.probe"].create({"name": f"failed {self.id} {self.env.uid}", "count": self.attempts})


class ChaosProbe(models.Model):
    _name = "chaos.probe"
    _description = "Probe"

    name = fields.Char()
    count = fields.Integer()

    _few = models.Constraint("CHECK (count < 1000)", "A probe counts to a thousand at most.")

    def start(self, method, *args, **options):
        """Enqueue one of the actions below on a new probe; return (probe, job)."""
        probe = self.sudo().create({"name": method})
        job = getattr(probe.enqueue(**options), method)(*args)
        return probe.id, job.id

    def start_many(self, count, method):
        """Enqueue one job on so many new probes, for later; return (probes, job)."""
        probes = self.sudo().create([{"name": method} for _ in range(count)])
        return probes.ids, getattr(probes.enqueue(delay=3600), method)().id

    def look(self, probe, job):
        """Return the probe's count and the job's state and error."""
        found = self.env["sidestream.job"].sudo().browse(job)
        return {"count": self.sudo().browse(probe).count, "state": found.state, "error": found.error or ""}

    @action(run_as="superuser", retry=ONCE)
    def add(self):
        self.count += 1

    @action(run_as="superuser", retry=ONCE)
    def commits(self):
        self.count += 1
        self.env.cr.commit()  # pylint: disable=invalid-commit  # refused, which is what is tested

    @action(run_as="superuser", retry=ONCE)
    def loses_its_session(self):
        self.count += 1
        self.env.cr.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    @action(run_as="superuser", retry=ONCE, key="probe")
    def loses_its_key(self):
        """Ends the other session of its process, which holds the key."""
        self.count += 1
        self.env.cr.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
        )

    @action(run_as="superuser", retry=ONCE)
    def rolls_back(self):
        self.count += 1
        self.env.cr.rollback()

    @action(run_as="superuser", retry=ONCE)
    def closes(self):
        self.count += 1
        self.env.cr.close()

    @action(run_as="superuser", retry=ONCE)
    def swallows(self):
        """Leave the transaction broken: an SQL error is swallowed without a savepoint."""
        self.count += 1
        self.flush_recordset()
        try:
            self.env.cr.execute("SELECT no_such_column FROM chaos_probe", log_exceptions=False)
        except Exception as error:  # swallowing it is what is tested
            self.name = str(error)[:10]

    @action(run_as="superuser", retry=ONCE)
    def swallows_and_enqueues(self):
        """The same, and the first thing that finds the transaction broken is a job."""
        self.enqueue().add()  # what is read for one is known now
        self.swallows()
        self.enqueue().add()

    @action(run_as="superuser", retry=ONCE)
    def hook_raises(self):
        """Change what others have in their caches, and fail after the commit."""
        self.count += 1
        self.env.registry.clear_cache()

        @self.env.cr.postcommit.add
        def hook():
            raise RuntimeError("a hook after the commit fails")

    @action(run_as="superuser", retry=ONCE, commits="relock")
    def hook_raises_between(self):
        """The same after a part."""
        self.count += 1

        @self.env.cr.postcommit.add
        def hook():
            raise RuntimeError("a hook after a part fails")

        self.env.cr.commit()  # pylint: disable=invalid-commit  # declared
        self.count += 1

    @action(run_as="superuser", retry=ONCE)
    def breaks_a_rule(self):
        self.count = 1000

    @action(run_as="superuser", retry=ONCE)
    def redirects(self):
        raise RedirectWarning("There is no chart of accounts.", 1, "Make one")

    @action(run_as="superuser")
    def refuses(self, kind):
        """Raise an error that a retry cannot fix."""
        self.count += 1
        kinds = [UserError, ValidationError, AccessError, MissingError, TypeError]
        if kind == "RedirectWarning":
            raise RedirectWarning("There is no chart of accounts.", 1, "Make one")
        raise {one.__name__: one for one in kinds}[kind](f"It is a {kind}.")

    @action(run_as="superuser", retry=ONCE)
    def hook_writes(self):
        self.count += 1

        @self.env.cr.postcommit.add
        def hook():
            self.count += 100
            self.env.flush_all()

    @action(run_as="superuser", retry=ONCE)
    def follows(self):
        self.enqueue().add()

    @action(run_as="superuser", retry=ONCE, three_step=True)
    def asks_outside(self):
        yield lambda key: self.search_count([])

    @action(run_as="superuser", retry=ONCE, three_step=True)
    def yields_rubbish(self):
        yield 42

    @action(run_as="superuser", retry=ONCE)
    def is_made_to_yield(self):
        """Be overridden below."""

    @action(run_as="superuser", retry=ONCE, three_step=True)
    def is_made_to_return(self):
        """Be overridden below."""
        yield lambda key: key

    @action(run_as="superuser", retry=ONCE)
    def discards(self):
        """Drop the worker's prepared statements."""
        self.count += 1
        self.env.cr.execute("DEALLOCATE ALL")

    @action(run_as="superuser", retry=ONCE)
    def leaves(self, fails=False):
        """Change the session's state."""
        self.count += 1
        self.env.cr.execute("SET statement_timeout = '77s'")
        self.env.cr.execute("SELECT pg_advisory_lock(77)")
        self.env.cr.execute("CREATE TEMP TABLE chaos_left (id integer)")
        if fails:
            raise GiveUp("what it left is not rolled back")

    @action(run_as="superuser", retry=ONCE, commits="relock")
    def leaves_to_itself(self):
        """Change the session's state in the first part and use it in the second."""
        self.env.cr.execute("SET statement_timeout = '77s'")
        self.env.cr.execute("SELECT pg_advisory_lock(77)")
        self.env.cr.execute("CREATE TEMP TABLE chaos_left AS SELECT 5 AS count")
        self.env.cr.commit()  # pylint: disable=invalid-commit  # declared
        self.env.cr.execute("SELECT count FROM chaos_left")
        [self.count] = self.env.cr.fetchone()
        self._look_at_the_session()

    @action(run_as="superuser", retry=ONCE)
    def looks(self):
        """Note the session's state."""
        self._look_at_the_session()

    def _look_at_the_session(self):
        self.env.cr.execute(
            """SELECT current_setting('statement_timeout'), to_regclass('pg_temp.chaos_left') IS NOT NULL,
               (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
               pg_backend_pid()"""
        )
        self.name = " ".join(map(str, self.env.cr.fetchone()))

    @action(run_as="superuser", retry=ONCE)
    def counts(self):
        """Note how many records exist."""
        for probe in self:
            probe.name = f"one of {len(self)}"

    @action(run_as="superuser")
    def works(self, seconds):
        """Keep a child busy."""
        time.sleep(seconds)
        self.count += 1

    @action(run_as="superuser", three_step=True)
    def calls(self, url):
        """Call a server outside any transaction."""
        yield lambda key: requests.get(f"{url}?{key}", timeout=30)
        self.count += 1

    @action(run_as="superuser", commits="relock")
    def catches_everything(self, url):
        """Call a server, and continue after any error of a commit."""
        self.count += 1
        requests.get(url, timeout=30)
        try:
            self.env.cr.commit()  # pylint: disable=invalid-commit  # declared
        except:  # noqa: E722  # it is what is tested
            self.name = "caught"
        self.count += 10

    @action(run_as="superuser", three_step=True)
    def calls_without_its_key(self, url, once):
        """Like ``calls``, but the first time, cut the connection that holds the job's key before the call."""
        note = Path(once)
        if note.exists():
            with note.open("a") as told:
                told.write("begun again\n")
        else:
            self.env.cr.execute(
                """SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
                   WHERE application_name = current_setting('application_name') AND pid IN
                         (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid())"""
            )
            note.write_text(f"cut {self.env.cr.fetchone()[0]}\n")
        yield lambda key: requests.get(f"{url}?{key}", timeout=30)
        self.count += 1

    @action(run_as="superuser")
    def gives_up(self):
        raise GiveUp("This parcel has no address; correct the order, then Retry.")

    @action(run_as="superuser", retry=ONCE, soft_limit=0.3)
    def too_long(self):
        time.sleep(5)

    @action(run_as="superuser", retry=ONCE, hard_limit=1)
    def far_too_long(self):
        os.system("sleep 30")  # a program that has to die with the job

    @action(retry=ONCE)
    def who(self):
        self.sudo().name = (
            f"{self.env.uid} {self.env.su} {self.env.company.id} {self.env.lang} {self.env.context.get('tz')}"
        )


class ChaosProbeOverridden(models.Model):
    _inherit = "chaos.probe"

    def is_made_to_yield(self):
        yield lambda key: key
        self.count += 1

    def is_made_to_return(self):
        self.count += 1
        return True

from unittest.mock import patch

from sidestream import Status

from odoo.fields import Domain

from odoo.addons.sidestream.models import sidestream_job

from .common import JobCase


class TestStatus(JobCase):
    """What lists show of a job: its status, its details and its duration."""

    def test_what_a_pending_job_waits_for(self):
        job = self.order.enqueue(delay=3600).remember()
        for change, status, message in (
            ("attempts = 2, error = 'UserError: No courier.'", "retrying", "^Retries in (1 hr|60 min): No courier.$"),
            ("run_at = now() AT TIME ZONE 'UTC'", "waiting", "^Last error: No courier.$"),
            ("run_at = run_at + interval '1 day', forgiven = 2", "scheduled", "^Starts in (1 day|24 hr)$"),
            ("run_at = now() AT TIME ZONE 'UTC'", "waiting", "^$"),
            ("reason = 'the bank opens at nine'", "waiting", "^the bank opens at nine$"),
            ("reason = 'locked'", "waiting", "^Its row is locked"),
            ("reason = 'conflict'", "waiting", "^Other users changed the same records"),
            ("reason = 'stopping'", "waiting", "^Its worker restarts$"),
            ("reason = 'upgrading'", "paused", "^Waits until modules are installed"),
            ("reason = 'unrouted'", "unrouted", "^No running worker knows its action"),
            ("""reason = 'lost|{"error": "the server closed it"}'""", "waiting", "^The database did not answer"),
            ("state = 'failed', error = 'UserError: Not: so'", "failed", "^Not: so$"),
            ("error = 'Address: the customer has none.'", "failed", "^Address: the customer has none.$"),
            ("error = 'It was released: too often'", "failed", "^It was released: too often$"),
            (
                """state = 'cancelled', reason = 'expired|{"expires_at": "2026-01-01 00:00:00"}'""",
                "cancelled",
                "^It expired before",
            ),
            ("""reason = 'duplicate|{"of": 7}'""", "cancelled", "^It duplicates job 7$"),
            ("""reason = 'replaced|{"by": 8}'""", "cancelled", "^Replaced by job 8$"),
            ("reason = NULL", "cancelled", "^$"),
            ("state = 'done', error = NULL", "done", "^$"),
        ):
            self.env.cr.execute(f"UPDATE sidestream_job SET {change} WHERE id = %s", [job.id])
            self.env.invalidate_all()
            with self.subTest(change=change):
                self.assertEqual(job.status, status)
                self.assertRegex(job.message or "", message)

    def test_status_of_a_job_that_a_rule_or_its_key_holds_back(self):
        first, job = self.order.enqueue(key="a").remember(), self.order.enqueue(key="a", limit="api").remember()
        self.assertEqual((first.status, job.status), ("waiting", "blocked"))
        self.assertIn("same ordering key", job.message)
        self.env.cr.execute("UPDATE sidestream_job SET state = 'done' WHERE id = %s", [first.id])
        for values, status, message in (
            ("'limit', 'key', 'api', 0", "limited", "^Its concurrency or rate limit is reached$"),
            ("'limit', 'global', '', 0", "limited", "limit"),
            ("'limit', 'global', '', 1", "waiting", "^$"),
            ("'limit', 'queue', 'other', 0", "waiting", "^$"),
            ("'pause', 'queue', 'default', NULL", "paused", "^Its queue, action or group is paused$"),
            ("'pause', 'action', 'test.sidestream.order.remember', NULL", "paused", "paused"),
            ("'pause', 'queue', 'other', NULL", "waiting", "^$"),
        ):
            self.env.cr.execute("DELETE FROM sidestream_rule")
            self.env.cr.execute(f"INSERT INTO sidestream_rule (kind, scope, name, concurrency) VALUES ({values})")
            self.env.invalidate_all()
            with self.subTest(rule=values):
                self.assertEqual(job.status, status)
                self.assertRegex(job.message or "", message)
        self.env.cr.execute("DELETE FROM sidestream_rule")
        self.env.cr.execute(
            "INSERT INTO sidestream_rule (kind, scope, name, concurrency) VALUES ('limit', 'key', 'api', 1)"
        )
        running = self.orders[1].enqueue(limit="api").remember()
        self.env.cr.execute("INSERT INTO sidestream_worker (name) VALUES ('w')")
        self.env.cr.execute(
            "INSERT INTO sidestream_attempt (job_id, worker, slot, event) VALUES (%s, 'w', 0, 'started')", [running.id]
        )
        self.env.invalidate_all()
        self.assertEqual(job.status, "limited", "a long job uses the limit up")

    def test_the_status_running_depends_on_the_row_lock(self):
        """What was noted once proves nothing: the row's lock does."""
        job = self.order.enqueue().remember()
        self.env.cr.execute("SELECT id FROM sidestream_job WHERE id = %s FOR NO KEY UPDATE", [job.id])
        self.assertEqual(job.status, "waiting", "one's own lock is no run")
        running = {job.id}
        self.patch(
            sidestream_job, "pending_statuses", lambda cr, ids: dict.fromkeys(running & set(ids), Status.RUNNING)
        )
        for event, message in (("crashed", "^$"), ("started", "^Running for [0-9]+ sec$")):
            self.env.cr.execute(
                "INSERT INTO sidestream_attempt (job_id, worker, slot, event) VALUES (%s, 's', 0, %s)",
                [job.id, event],
            )
            self.env.invalidate_all()
            self.assertEqual(job.status, "running")
            self.assertRegex(job.message or "", message)
        running.clear()
        self.env.invalidate_all()
        self.assertEqual(job.status, "waiting")

    def test_the_status_is_read_from_the_primary_and_not_from_a_replica(self):
        """No session holds a lock on a replica, so no job would show as running."""
        job = self.order.enqueue().remember()
        asked = []
        self.patch(
            sidestream_job, "pending_statuses", lambda cr, ids: asked.append(cr) or dict.fromkeys(ids, Status.RUNNING)
        )
        self.patch(type(self.env.cr), "readonly", True)
        with patch.object(self.registry, "cursor") as opened:
            self.assertEqual(job.status, "running")
            self.assertFalse(opened.called, "it only reads, but at the server itself")
            self.env.invalidate_all()
            self.patch(sidestream_job, "_is_replica", lambda cr: cr.readonly)
            primary = opened.return_value.__enter__.return_value
            primary.fetchall.return_value = [(job.id, "crashed", None)]
            self.assertEqual(job.status, "running")
        self.assertEqual(asked, [self.env.cr._obj, primary._obj])
        self.assertTrue(opened.return_value.__exit__.called, "and closed")

    def test_jobs_are_sorted_searched_and_grouped_by_their_duration_and_error_group(self):
        hours = (0.5, 24, 0.001, 2)
        jobs = self.env["sidestream.job"]
        for number, duration in enumerate(hours):
            job = self.order.enqueue().remember()
            self.env.cr.execute(
                "UPDATE sidestream_job SET state = 'failed', ended_at = created_at + %s * interval '1 hour', "
                "error_group = %s WHERE id = %s",
                [duration, f"group {number % 2}", job.id],
            )
            jobs += job
        pending = self.order.enqueue().remember()
        self.env.invalidate_all()
        self.assertEqual([round(job.duration, 3) for job in jobs], list(hours))
        self.assertFalse(pending.duration)
        these = Domain("id", "in", jobs.ids)
        self.assertEqual(jobs.search(these, order="duration"), jobs[2] + jobs[0] + jobs[3] + jobs[1])
        self.assertEqual(jobs.search(these & Domain("duration", ">", 1)), jobs[3] + jobs[1])
        groups = jobs.formatted_read_group(these, ["error_group"], ["__count", "duration:max"])
        self.assertEqual(
            [(group["error_group"], group["__count"], round(group["duration:max"], 3)) for group in groups],
            [("group 0", 2, 0.5), ("group 1", 2, 24)],
        )
        fields = jobs.fields_get(["duration", "error_group"])
        self.assertTrue(fields["duration"]["sortable"])
        self.assertTrue(fields["error_group"]["groupable"])

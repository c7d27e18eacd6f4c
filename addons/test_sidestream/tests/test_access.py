import json

from sidestream.admin.diagnosis import Code, Diagnosis

from odoo.exceptions import AccessError, UserError
from odoo.fields import Domain
from odoo.service.model import call_kw, get_public_method

from odoo.addons.sidestream.models import sidestream_job

from .common import JobCase


class TestAccess(JobCase):
    """Who sees and does what, through the same door as the web client."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        order = cls.order
        cls.own = order.with_user(cls.user).enqueue().remember().sudo()
        cls.foreign = order.with_user(cls.colleague).enqueue().remember().sudo()
        cls.colleague.company_ids += cls.other_company
        cls.elsewhere = order.with_user(cls.colleague).with_company(cls.other_company).enqueue().remember().sudo()
        cls.all = cls.own + cls.foreign + cls.elsewhere

    def rpc(self, user, method, *args, model="sidestream.job", **kwargs):
        kwargs.setdefault("context", {"allowed_company_ids": user.company_id.ids})
        return call_kw(self.env(user=user.id)[model], method, list(args), kwargs)

    def test_nobody_makes_or_changes_jobs(self):
        for user in (self.user, self.manager, self.env.ref("base.user_admin")):
            for method, args in (
                ("create", [[{"action": "x"}]]),
                ("name_create", ["x"]),
                ("web_save", [self.own.ids, {"queue": "x"}, {}]),
                ("write", [self.own.ids, {"user_id": user.id}]),
                ("copy", [self.own.ids]),
                ("unlink", [self.own.ids]),
                ("load", [["action"], [["x"]]]),
            ):
                with self.subTest(user=user.name, method=method), self.assertRaises(UserError):
                    self.rpc(user, method, *args)
        for method, args in (("create", [[{"event": "done"}]]), ("write", [[1], {"detail": "x"}]), ("unlink", [[1]])):
            with self.subTest(method=method), self.assertRaises(AccessError):
                self.rpc(self.manager, method, *args, model="sidestream.attempt")

    def test_the_superuser_cannot_change_jobs_either(self):
        for call in (
            lambda jobs: jobs.create({"action": "x"}),
            lambda jobs: jobs.write({"state": "done"}),
            lambda jobs: jobs.unlink(),
            lambda jobs: jobs.copy(),
        ):
            with self.assertRaisesRegex(UserError, "cannot create, copy, import, edit or delete"):
                call(self.own.sudo())

    def test_not_callable_from_outside(self):
        for name in ("enqueue", "_sidestream_jobs"):
            with self.assertRaises(AccessError):
                get_public_method(self.env["test.sidestream.order"], name)
        for name in ("_sidestream_call", "_sidestream_env", "_of_records", "_request"):
            with self.assertRaises(AccessError):
                get_public_method(self.env["sidestream.job"], name)

    def found(self, user, companies=None):
        context = {"allowed_company_ids": (companies or user.company_ids).ids}
        ids = self.rpc(user, "search", [("id", "in", self.all.ids)], context=context)
        return self.env["sidestream.job"].browse(ids)

    def test_who_sees_what(self):
        self.assertEqual(self.found(self.user), self.own)
        self.assertEqual(set(self.found(self.colleague)), {self.foreign, self.elsewhere})
        self.assertEqual(set(self.found(self.manager)), {self.own, self.foreign})
        self.manager.company_ids += self.other_company
        self.assertEqual(set(self.found(self.manager)), set(self.all))
        self.assertEqual(self.found(self.manager, self.other_company), self.elsewhere)
        with self.assertRaises(AccessError):
            self.rpc(self.user, "read", self.foreign.ids, ["error"])
        for name in ("payload", "key", "limit_key", "group_name"):
            with self.subTest(name=name), self.assertRaises(AccessError):
                self.rpc(self.user, "read", self.own.ids, [name])
        self.assertTrue(self.rpc(self.manager, "read", self.own.ids, ["payload"])[0]["payload"])

    def test_portal_and_public_see_nothing(self):
        for user in (self.env.ref("base.public_user"), self.env.ref("base.user_admin").copy({"group_ids": [
            (6, 0, self.env.ref("base.group_portal").ids)]})):  # fmt: skip
            with self.assertRaises(AccessError):
                self.rpc(user, "search", [])

    def test_jobs_of_a_record_are_limited_to_visible_jobs(self):
        self.assertEqual(set(self.order._sidestream_jobs()), set(self.all))
        self.assertEqual(self.order.with_user(self.user)._sidestream_jobs(), self.own)

    def test_jobs_of_others_do_not_hide_own_jobs(self):
        self.env.cr.execute(
            """WITH others AS (
                   INSERT INTO sidestream_job (action, queue, payload, user_id)
                   SELECT 'test.sidestream.order.remember', 'default', '{}', %s FROM generate_series(1, 1100)
                   RETURNING id)
               INSERT INTO sidestream_job_record (job_id, model, record_id) SELECT id, %s, %s FROM others""",
            [self.colleague.id, self.order._name, self.order.id],
        )
        self.assertEqual(self.order.with_user(self.user)._sidestream_jobs(), self.own)
        newest = self.order._sidestream_jobs()
        self.assertEqual((len(newest), newest.ids), (1000, sorted(newest.ids, reverse=True)))

    def test_unreadable_records_are_not_named(self):
        self.order.company_id = self.other_company
        self.env.flush_all()
        self.assertFalse(self.own.with_user(self.user).with_context(allowed_company_ids=self.company.ids).records)
        self.order.unlink()
        self.env.invalidate_all()
        self.assertFalse(self.own.records)

    def test_attempts(self):
        happened = (
            ("failed", "UserError: No courier: there\nTraceback ...\n  ask: Contact somebody.", "No courier: there"),
            ("started", "alone", "Runs alone, because its last worker died"),
            ("started", 'running|{"seconds": 12.0}', "It had started 12.0 s earlier"),
            ("released", "stopping", "Its worker restarts"),
            ("released", 'snoozed|{"seconds": 60, "message": "no bank"}', "Snoozed for 60 s: no bank"),
            ("crashed", "It crashed: killed by SIGKILL.", "It crashed: killed by SIGKILL."),
            ("done", None, ""),
        )  # fmt: skip
        for job in (self.own, self.foreign):
            for event, detail, _message in happened:
                self.env.cr.execute(
                    "INSERT INTO sidestream_attempt (job_id, worker, slot, event, detail) VALUES (%s, 's', 0, %s, %s)",
                    [job.id, event, detail],
                )
        attempts = self.env["sidestream.attempt"].with_user(self.user).search([], order="id")
        self.assertEqual(attempts.job_id, self.own)
        self.assertEqual([one.message or "" for one in attempts], [message for *_, message in happened])
        with self.assertRaises(AccessError):
            attempts.read(["detail"])

    def test_owner_and_manager_act(self):
        for user, job, allowed in (
            (self.user, self.own, True),
            (self.user, self.foreign, False),
            (self.manager, self.own, True),
            (self.manager, self.elsewhere, False),
            (self.env.ref("base.public_user"), self.own, False),
        ):
            for method in ("action_run_now", "action_cancel", "action_retry"):
                with self.subTest(user=user.name, job=job.id, method=method):
                    if allowed:
                        self.assertTrue(self.rpc(user, method, job.ids))
                    else:
                        with self.assertRaises(AccessError):
                            self.rpc(user, method, job.ids)

    def test_the_requester_sees_and_controls_a_job_of_another_user(self):
        for method in ("remember_as_superuser", "remember_as_service"):
            with self.subTest(method=method):
                job = getattr(self.order.with_user(self.user).enqueue(), method)()
                self.assertEqual((job.requested_by, job.state), (self.user, "pending"))
                self.assertIn(job, self.order.with_user(self.user)._sidestream_jobs())
                self.assertTrue(self.rpc(self.user, "action_cancel", job.ids))
                self.assertFalse(self.env["sidestream.job"].with_user(self.colleague).search([("id", "=", job.id)]))
                with self.assertRaises(AccessError):
                    self.rpc(self.colleague, "action_retry", job.ids)
        self.assertFalse(self.own.requested_by, "told once only")

    def test_seeing_a_job_does_not_allow_acting_on_it(self):
        """A rule that shows more than one's own gives no right to act."""
        self.env.ref("sidestream.sidestream_job_rule_user").domain_force = "[(1, '=', 1)]"
        self.assertTrue(self.rpc(self.user, "read", self.foreign.ids, ["error"]))
        with self.assertRaisesRegex(AccessError, "your own background jobs"):
            self.rpc(self.user, "action_cancel", self.foreign.ids)


class AtOnce:
    """A thread that is over when it was started."""

    def __init__(self, target, args, daemon):
        self.start = lambda: target(*args)


class TestButtons(JobCase):
    def test_cancel_and_retry(self):
        job = self.order.with_user(self.user).enqueue().remember()
        self.assertEqual(job.status, "waiting")
        self.assertIs(job.action_cancel(), True)
        self.assertEqual((job.state, job.status, job.message), ("cancelled", "cancelled", False))
        self.assertIs(job.action_retry(), True)
        self.assertEqual(job.state, "pending")
        self.assertFalse(job.duration)
        self.end(job, "failed", "ValueError: no: not so")
        self.assertEqual((job.status, job.message), ("failed", "no: not so"))
        self.assertIs(job.action_retry(), True)
        self.assertEqual(job.state, "pending")

    def test_run_now(self):
        job = self.order.enqueue(delay=3600).remember()
        self.assertEqual(job.status, "scheduled")
        self.assertRegex(job.message, "^Starts in (1 hr|60 min)$")
        self.assertIs(job.action_run_now(), True)
        self.assertEqual((job.status, job.message), ("waiting", False))

    def test_retry_of_a_job_that_was_cancelled_before_its_time_keeps_the_time_and_says_so(self):
        job = self.order.enqueue(delay=3600).remember()
        before = job.run_at
        job.action_cancel()
        message = job.action_retry()["params"]["message"]
        self.assertEqual((job.state, job.run_at), ("pending", before))
        self.assertIn("1 jobs keep the time for which they were scheduled. Use Run Now", message)
        self.assertIs(job.action_run_now(), True)
        self.env.cr.execute(
            "UPDATE sidestream_job SET state = 'cancelled', attempts = 1, run_at = run_at + interval '2 h' "
            "WHERE id = %s",
            [job.id],
        )
        self.env.invalidate_all()
        self.assertIs(job.action_retry(), True)
        self.assertEqual(job.status, "waiting", "one that had started is retried immediately")

    def test_the_button_why_is_it_waiting(self):
        """The engine looks over a connection of its own, which does not see what this test did."""
        job = self.order.with_user(self.user).enqueue().remember()
        with self.assertRaisesRegex(AccessError, "only managers"):
            job.with_user(self.user).action_why()
        told = []
        suspect = Diagnosis(Code.SUSPECT)
        self.patch(sidestream_job, "why_waiting", lambda settings, job_id: told.append(job_id) or suspect)
        answer = job.with_user(self.manager).action_why()
        self.assertEqual(told, [job.id])
        self.assertIn("waits until a worker can run it alone", answer["params"]["message"])
        self.patch(sidestream_job, "why_waiting", lambda settings, job_id: None)
        self.assertIn("no longer exists", job.with_user(self.manager).action_why()["params"]["message"])

    def test_found_by_its_record(self):
        jobs = self.env["sidestream.job"].search([])
        mine = self.order.with_user(self.user).enqueue().remember()
        other = self.orders[1].with_user(self.user).enqueue().remember()
        found = self.env["sidestream.job"].search([("records", "ilike", self.order.name)]) - jobs
        self.assertEqual((found, other.records), (mine, self.orders[1].name))
        found = self.env["sidestream.job"].with_user(self.colleague).search([("records", "=", self.order.name)])
        self.assertFalse(found & mine)
        jobs = self.env["sidestream.job"]
        self.assertFalse(jobs.search([("records", "ilike", "no such order")]))
        both = Domain("id", "in", (mine + other).ids)
        for operator, value, expected in (
            ("not ilike", self.order.name, other),
            ("!=", self.order.name, other),
            ("in", [self.order.name, self.orders[1].name], mine + other),
            ("=", False, jobs),
            ("!=", False, mine + other),
        ):
            with self.subTest(operator=operator, value=value):
                self.assertEqual(jobs.search(both & Domain("records", operator, value)), expected.sorted("id", True))

    def test_the_records_of_a_job_open(self):
        action = self.order.enqueue().remember().action_open_records()
        self.assertEqual((action["res_model"], action["res_id"]), (self.order._name, self.order.id))
        action = self.orders.enqueue().remember().action_open_records()
        self.assertEqual(action["domain"], [("id", "in", self.orders.ids)])
        job = self.order.enqueue().remember()
        self.order.unlink()
        with self.assertRaisesRegex(UserError, "no longer exist"):
            job.action_open_records()

    def test_nothing_to_do(self):
        job = self.order.enqueue().remember()
        self.end(job, "done")
        for method in ("action_cancel", "action_retry", "action_run_now"):
            answer = getattr(job, method)()
            self.assertIn("0 of ", answer["params"]["message"])
        jobs = job + self.order.enqueue().remember()
        self.assertIn("1 of 2 jobs", jobs.action_cancel()["params"]["message"])

    def test_redis_is_synchronized_after_the_commit_if_available(self):
        jobs = self.orders.enqueue(split=1).remember()
        self.env.cr.postcommit.clear()
        jobs.action_cancel()
        self.assertEqual(len(self.env.cr.postcommit), 1)
        told = []
        self.patch(sidestream_job, "_sync", lambda *told_of: told.append(told_of))
        self.patch(sidestream_job.threading, "Thread", AtOnce)
        self.env.cr.postcommit.run()
        self.assertEqual(told, [(self.env.cr.dbname, jobs.ids, False)])

    def test_many_jobs_are_synchronized_at_once(self):
        asked = []
        self.patch(
            sidestream_job, "sync_to_broker", lambda settings, job_ids, waiting: asked.append((job_ids, waiting))
        )
        sidestream_job._sync(self.env.cr.dbname, list(range(1, 151)), waiting=True)
        self.assertEqual(asked, [(list(range(1, 151)), True)])

    def test_a_failed_synchronization_is_logged(self):

        def broken(*args, **kwargs):
            raise RuntimeError("broken")

        self.patch(sidestream_job, "sync_to_broker", broken)
        with self.assertLogs("odoo.addons.sidestream.models.sidestream_job", "ERROR"):
            sidestream_job._sync(self.env.cr.dbname, [1], waiting=True)

    def test_secrets_are_hidden(self):
        given = {"password": "hunter2", "options": {"api_key": "hunter3", "n": 5}}
        job = self.order.enqueue().deliver("home", "hunter1", **given)
        self.env.cr.execute("SELECT payload FROM sidestream_job WHERE id = %s", [job.id])
        self.assertEqual(self.env.cr.fetchone()[0].count("hunter"), 3, "the job needs them")
        self.end(job, "failed", "ConnectionError: GET /?token=hunter4 Authorization: Bearer hunter5")
        self.env.cr.execute(
            "INSERT INTO sidestream_attempt (job_id, worker, slot, event, detail) VALUES (%s, 's', 0, 'failed', %s)",
            [job.id, "ConnectionError: secret='hunter6'\nTraceback: password=hunter7"],
        )
        self.env.invalidate_all()
        shown = job.read()[0] | {
            "attempts": job.attempt_ids.read(),
            "records": job.web_read({"payload": {}, "error": {}}),
        }
        self.assertNotIn("hunter", str(shown))
        self.assertEqual(
            json.loads(job.payload),
            {
                "args": [self.order.ids, "home", "***"],
                "kwargs": {"password": "***", "options": {"api_key": "***", "n": 5}},
            },
        )
        self.assertEqual(job.message, "GET /?token=*** Authorization: Bearer ***")
        self.assertNotIn(
            "hunter", str(job.export_data(["payload", "error", "attempt_ids/detail", "attempt_ids/message"]))
        )

    def test_own_jobs_of_an_unselected_company_show_all_fields(self):
        """The list shows a user's own jobs of all companies; which ones are selected is no matter of rights."""
        self.user.company_ids += self.other_company
        self.order.company_id = self.other_company
        there = {"allowed_company_ids": self.other_company.ids}
        job = self.order.with_user(self.user).with_context(**there).enqueue().remember()
        seen = job.with_context(allowed_company_ids=self.company.ids)
        self.env.invalidate_all()
        self.assertEqual((seen.records, seen.user_id, seen.name), ("O0", self.user, "Remember"))
        self.assertEqual(seen.search([("records", "=", "O0")]), job)
        self.assertEqual(seen.action_open_records()["res_id"], self.order.id)
        self.user.company_ids -= self.other_company
        self.env.invalidate_all()
        self.assertFalse(seen.records, "what the user may not read is not named")

    def test_names(self):
        job = self.order.enqueue().remember_as_superuser()
        self.assertEqual((job.name, job.display_name), ("As the system", f"As the system (job {job.id})"))
        for words in ("as the SYS", "remember as", "remember_as_superuser"):
            self.assertEqual(job.search([("name", "ilike", words), ("id", "=", job.id)]), job)
        self.assertFalse(job.search([("name", "ilike", "as nobody"), ("id", "=", job.id)]))
        other, private = self.order.enqueue().remember(), self.order.enqueue()._private()
        both = Domain("id", "in", (job + other + private).ids)
        for operator, value, expected in (
            ("=", "As the system", job),
            ("=", "As the", job.browse()),
            ("=", "As the%", job.browse()),
            ("=", "Rememb%", job.browse()),
            ("=", "R_member", job.browse()),
            ("ilike", "rem_mber", job.browse()),
            ("ilike", "re%ber", job.browse()),
            ("ilike", "remember_as", job),
            ("=", "Remember as superuser", job.browse()),
            ("in", ["Remember", "Private"], other + private),
            ("!=", "As the system", other + private),
            ("not ilike", "system", other + private),
            ("=", False, job.browse()),
            ("!=", False, job + other + private),
        ):
            with self.subTest(operator=operator, value=value):
                self.assertEqual(set(job.search(both & Domain("name", operator, value))), set(expected))
        self.env.cr.execute("UPDATE sidestream_job SET action = 'gone.model.do_it' WHERE id = %s", [job.id])
        self.env.cr.execute("UPDATE sidestream_job_record SET model = 'gone.model' WHERE job_id = %s", [job.id])
        self.env.invalidate_all()
        self.assertEqual((job.name, job.records), ("Do it", ""))
        self.assertEqual(job.search([("display_name", "ilike", "do_it")]), job)

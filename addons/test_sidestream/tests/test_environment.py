from sidestream import GiveUp, InvalidJob

from odoo import api
from odoo.exceptions import AccessError

from odoo.addons.sidestream import INLINE

from .common import JobCase


class TestEnvironment(JobCase):
    """Whose rights, companies and language a job has, and when it gives up."""

    def run_as(self, records, method="remember", *args):
        with self.trap() as trap:
            job = getattr(records.enqueue(), method)(*args)
            trap.perform()
        return job

    def test_user_language_and_time_zone(self):
        self.env["res.lang"]._activate_lang("fr_FR")
        order = self.order.with_user(self.user).with_context(lang="fr_FR", tz="Asia/Tokyo", default_name="x", other=1)
        job = self.run_as(order)
        seen = self.remembered()
        self.assertEqual((seen["uid"], seen["su"]), (self.user.id, False))
        self.assertEqual((seen["lang"], seen["tz"]), ("fr_FR", "Asia/Tokyo"))
        self.assertNotIn("default_name", seen["context"])
        self.assertNotIn("other", seen["context"])
        self.assertEqual(job.sudo().user_id, self.user)

    def test_language_that_was_removed(self):
        self.env["res.lang"]._activate_lang("fr_FR")
        with self.trap() as trap:
            self.order.with_context(lang="fr_FR").with_user(self.user).enqueue().remember()
            self.env["res.lang"].search([("code", "=", "fr_FR")]).active = False
            trap.perform()
        self.assertIsNone(self.remembered()["lang"])

    def test_invalid_languages_and_time_zones_are_left_out(self):
        self.env["res.lang"]._activate_lang("fr_FR")
        long = "x" * 1_000_000
        for wrong in (
            {"tz": long}, {"tz": ["x"]}, {"tz": "Mars/Phobos"}, {"tz": 7},
            {"lang": long}, {"lang": ["x"]}, {"lang": "tlh_KX"}, {"lang": "de_DE"},
            {"allowed_company_ids": [self.company.id, long]},
        ):  # fmt: skip
            name = next(iter(wrong))
            context = {"lang": "fr_FR", "tz": "Asia/Tokyo"} | wrong
            # As the superuser: of others Odoo itself refuses what are no companies.
            order = self.order.with_user(self.env.ref("base.user_root"))
            with self.subTest(context=str(wrong)[:60]), self.trap() as trap:
                [job] = order.with_context(**context).enqueue().remember()
                self.assertLess(len(self.row(job, "context")), 200)
                trap.perform()
                seen = self.remembered()
                self.assertEqual(seen["lang"], None if name == "lang" else "fr_FR")
                self.assertEqual(seen["tz"], None if name == "tz" else "Asia/Tokyo")

    def test_a_context_that_is_too_large_is_refused(self):
        order = self.order.sudo().with_context(allowed_company_ids=[self.company.id, *range(10**6, 10**6 + 9000)])
        with self.assertRaisesRegex(InvalidJob, "context .* bytes, more than"):
            order.enqueue().remember_as_superuser()

    def test_companies(self):
        self.user.company_ids += self.other_company
        order = self.order.with_user(self.user)
        both = [self.other_company.id, self.company.id]
        job = self.run_as(order.with_context(allowed_company_ids=both))
        self.assertEqual((self.remembered()["company"], self.remembered()["companies"]), (both[0], both))
        self.assertEqual(job.sudo().company_id, self.other_company)
        self.run_as(order.with_context(allowed_company_ids=[self.other_company.id]))
        self.assertEqual(self.remembered()["companies"], [self.other_company.id])

    def test_company_without_a_context(self):
        """As in a scheduled action: the user's own company, even when that is another one by the time it runs."""
        self.user.company_ids += self.other_company
        with self.trap() as trap:
            self.order.with_user(self.user).enqueue().remember()
            self.user.company_id = self.other_company
            trap.perform()
        self.assertEqual(self.remembered()["company"], self.company.id)
        self.assertEqual(set(self.remembered()["companies"]), {self.company.id, self.other_company.id})

    def test_run_as_superuser(self):
        self.user.company_ids += self.other_company
        order = self.order.with_user(self.user)
        job = self.run_as(order, "remember_as_superuser")
        seen = self.remembered()
        self.assertEqual((seen["uid"], seen["su"], seen["company"]), (1, True, self.company.id))
        self.assertEqual(job.sudo().user_id.id, 1)
        self.user.company_id = self.other_company
        self.run_as(order, "remember_as_superuser")
        self.assertEqual(self.remembered()["company"], self.other_company.id)
        self.run_as(order.with_company(self.company), "remember_as_superuser")
        self.assertEqual(self.remembered()["company"], self.company.id)

    def test_run_as_service_user(self):
        self.user.company_ids += self.other_company
        both = [self.company.id, self.other_company.id]
        order = self.order.with_user(self.user).with_context(allowed_company_ids=both)
        self.run_as(order, "remember_as_service")
        seen = self.remembered()
        self.assertEqual((seen["uid"], seen["su"]), (self.service.id, False))
        self.assertEqual(seen["companies"], [self.company.id])  # what both may
        with self.assertRaisesRegex(GiveUp, "Service no longer has access to Other Company"):
            self.run_as(order.with_company(self.other_company), "remember_as_service")

    def test_a_service_user_uses_the_companies_of_a_caller_without_a_context(self):
        """As in a scheduled action, or over RPC: where both may work, whatever the service user's own company is."""
        third = self.env["res.company"].create({"name": "Third Company"})
        self.service.company_ids += self.other_company + third
        self.service.company_id = third
        for context in ({}, {"sidestream_inline": INLINE}):
            for companies in (self.company, self.company + self.other_company):
                self.user.company_ids = [(6, 0, companies.ids)]
                with self.subTest(context=context, companies=companies.ids), self.trap() as trap:
                    self.order.with_user(self.user).with_context(**context).enqueue().remember_as_service()
                    trap.perform()
                    seen = self.remembered()
                    self.assertEqual((seen["uid"], seen["company"]), (self.service.id, self.company.id))
                    self.assertEqual(set(seen["companies"]), set(companies.ids))

    def test_inline_has_the_rights_and_context_of_the_job(self):
        """Else an action that needs more than its job has works in an import, or where a company switched off."""
        self.env["res.lang"]._activate_lang("fr_FR")
        (self.user + self.service).company_ids += self.other_company
        context = {"lang": "fr_FR", "tz": "Asia/Tokyo", "default_note": "x", "active_test": False}
        both = {"allowed_company_ids": [self.other_company.id, self.company.id]}
        for user in (self.user, self.env.ref("base.user_root")):
            for companies in ({}, both):
                order = self.order.with_user(user).sudo().with_context(**context, **companies)
                for method in ("remember", "remember_as_superuser", "remember_as_service"):
                    with self.subTest(user=user.login, companies=companies, method=method):
                        job = self.seen_by(order, method)
                        self.assertEqual(self.seen_by(order.with_context(sidestream_inline=INLINE), method), job)
        with self.assertRaises(AccessError):
            self.order.with_user(self.user).sudo().with_context(sidestream_inline=INLINE).enqueue().read_secret()

    def seen_by(self, order, method):
        """Return what a job and an inline call have to see alike."""
        self.run_as(order, method)
        seen = self.remembered()
        told_otherwise = {"sidestream_job_id", "sidestream_attempt", "sidestream_inline", "allowed_company_ids"}
        return seen | {"companies": set(seen["companies"]), "context": set(seen["context"]) - told_otherwise}

    def test_records_in_arguments_have_the_rights_of_the_job(self):
        order = self.order.with_user(self.user).sudo()
        for context in ({}, {"sidestream_inline": INLINE}):
            self.run_as(order.with_context(**context), "remember", order)
            self.assertEqual(self.remembered()["args_su"], [False])

    def test_follow_up_jobs_of_an_inline_call_run_inline(self):
        before = self.count()
        self.order.with_context(sidestream_inline=INLINE).enqueue().chain(3)
        self.assertEqual((self.order.note, self.count()), ("1", before))

    def test_run_as_nobody(self):
        self.env.ref("test_sidestream.service").unlink()
        self.env["ir.model.data"].search([("module", "=", "test_sidestream"), ("name", "=", "service")]).unlink()
        with self.assertRaisesRegex(InvalidJob, "names no user"):
            self.order.enqueue().remember_as_service()

    def test_sudo_is_not_kept(self):
        self.order.secret = "secret"
        order = self.order.with_user(self.user).sudo()
        self.run_as(order)
        self.assertEqual((self.remembered()["uid"], self.remembered()["su"]), (self.user.id, False))
        with self.assertRaises(AccessError):
            self.run_as(order, "read_secret")
        self.run_as(self.order.with_user(self.env.ref("base.user_admin")), "read_secret")
        self.assertEqual(self.order.note, "secret")

    def test_public_user(self):
        public = self.env.ref("base.public_user")
        self.assertFalse(public.active)
        self.run_as(self.order.with_user(public).sudo())
        self.assertEqual((self.remembered()["uid"], self.remembered()["su"]), (public.id, False))
        with self.assertRaises(AccessError):
            self.run_as(self.order.with_user(public).sudo(), "ship")
        self.run_as(self.order.with_user(public), "remember_as_superuser")
        self.assertTrue(self.remembered()["su"])

    def test_record_of_another_company(self):
        """The rules of the run-as user hold, whatever the caller's sudo() saw."""
        self.order.company_id = self.other_company
        with self.assertRaises(AccessError):
            self.run_as(self.order.with_user(self.user).sudo(), "ship")

    def test_superuser_keeps_the_companies_of_a_caller_without_a_context(self):
        """As in a scheduled action, or over RPC: all that the caller may, whatever the superuser's own are."""
        third = self.env["res.company"].create({"name": "Third Company"})
        self.user.company_ids += self.other_company
        self.env.ref("base.user_root").company_ids -= self.other_company
        with self.trap() as trap:
            self.order.with_user(self.user).enqueue().remember_as_superuser()
            trap.perform()
        self.assertEqual(set(self.remembered()["companies"]), {self.company.id, self.other_company.id})
        self.assertEqual(self.remembered()["company"], self.company.id)
        self.user.company_ids += third
        with self.trap() as trap:
            self.order.with_user(self.user).enqueue().remember_as_superuser()
            self.user.company_ids -= third
            third.sudo().unlink()
            trap.perform()
        self.assertEqual(set(self.remembered()["companies"]), {self.company.id, self.other_company.id})

    def test_a_job_without_a_user_fails(self):
        """A row that was put in past Odoo: what its action declares was not looked at, so nobody runs it."""
        with self.trap() as trap:
            job = self.order.enqueue().remember()
            self.env.cr.execute("UPDATE sidestream_job SET user_id = NULL WHERE id = %s", [job.id])
            with self.assertRaisesRegex(GiveUp, "has no user to run as"):
                trap.perform()

    def test_nobody(self):
        with self.assertRaisesRegex(InvalidJob, "no user"):
            self.order.with_env(api.Environment(self.env.cr, None, {}, su=True)).enqueue().remember()

    def test_record_deleted(self):
        with self.trap() as trap:
            self.order.enqueue().remember()
            self.order.unlink()
            with self.assertRaisesRegex(GiveUp, "deleted before it ran: Test Order [0-9]+."):
                trap.perform()

    def test_some_records_deleted(self):
        with self.trap() as trap:
            self.orders.enqueue().ship()
            self.orders[1].unlink()
            trap.perform()
        self.assertEqual(self.orders.exists().mapped("note"), ["shipped", "shipped"])

    def test_model_uninstalled(self):
        jobs = self.env["sidestream.job"]
        with self.assertRaisesRegex(GiveUp, "gone.model no longer exists"):
            jobs._sidestream_call("gone.model.run", [[1]], {}, job_id=1, user_id=1, context=None, attempt=1)

    def test_user_archived(self):
        with self.trap() as trap:
            self.order.with_user(self.user).enqueue().remember()
            self.user.active = False
            with self.assertRaisesRegex(GiveUp, "The user Ute User is archived"):
                trap.perform()

    def test_user_deleted(self):
        leaver = self.user.copy({"login": "leaver"})
        with self.trap() as trap:
            job = self.order.with_user(leaver).enqueue().remember()
            leaver.unlink()
            with self.assertRaisesRegex(GiveUp, "was deleted"):
                trap.perform()
        jobs = job.with_user(self.manager)
        self.assertFalse(jobs.web_read({"user_id": {"fields": {"display_name": {}}}})[0]["user_id"])
        groups = jobs.formatted_read_group([("id", "=", job.id)], ["user_id"], ["__count"])
        self.assertEqual([group["user_id"] for group in groups], [False])
        self.assertEqual(jobs.search([("id", "=", job.id), ("user_id", "=", leaver.id)]), jobs)

    def test_company_taken_away(self):
        self.user.company_ids += self.other_company
        both = [self.company.id, self.other_company.id]
        for context in ({"allowed_company_ids": both}, {"allowed_company_ids": both[1:]}):
            self.user.company_ids = [(6, 0, both)]
            with self.trap() as trap:
                self.order.with_user(self.user).with_context(**context).enqueue().remember()
                self.user.company_ids = [(6, 0, both[:1])]
                with self.assertRaisesRegex(GiveUp, "Ute User no longer has access to Other Company"):
                    trap.perform()

    def test_company_deleted(self):
        doomed = self.env["res.company"].create({"name": "Doomed"})
        self.user.company_ids += doomed
        with self.trap() as trap:
            self.order.with_user(self.user).with_company(doomed).enqueue().remember()
            self.order.with_company(doomed).enqueue().remember_as_superuser()
            self.user.company_ids -= doomed
            self.env.user.company_ids -= doomed
            doomed.sudo().unlink()
            for _each in trap.jobs:
                with self.assertRaisesRegex(GiveUp, "company .* was deleted"):
                    trap.perform()

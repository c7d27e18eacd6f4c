from io import BytesIO
from unittest.mock import patch

import polib

from sidestream import GiveUp

from odoo.exceptions import AccessDenied, UserError
from odoo.tools import SQL, file_open, mute_logger
from odoo.tools.translate import code_translations, trans_export

from .common import JobCase


class TestModule(JobCase):
    def test_no_uninstall_with_pending_jobs(self):
        self.order.enqueue().remember()
        modules = self.env["ir.module.module"].search([("name", "in", ("sidestream", "base_import"))])
        sidestream = modules.filtered(lambda module: module.name == "sidestream")
        with self.assertRaisesRegex(UserError, "[0-9]+ background jobs are not finished yet"), self.env.cr.savepoint():
            sidestream.button_uninstall()
        self.assertEqual(sidestream.state, "installed")
        with self.assertRaises(UserError), self.env.cr.savepoint():
            self.env["ir.module.module"].search([("name", "=", "web")]).button_uninstall()
        with self.assertRaises(AccessDenied), mute_logger("odoo.addons.base.models.ir_module"):
            sidestream.with_user(self.user).button_uninstall()

    def test_uninstall_without_pending_jobs(self):
        self.end(self.order.enqueue().remember(), "done")
        self.end(self.order.enqueue().remember(), "failed")
        self.env.cr.execute("UPDATE sidestream_job SET state = 'cancelled' WHERE state = 'pending'")
        sidestream = self.env["ir.module.module"].search([("name", "=", "sidestream")])
        sidestream.button_uninstall()
        self.assertEqual(sidestream.state, "to remove")

    def test_another_module_can_be_uninstalled_with_pending_jobs(self):
        self.order.enqueue().remember()
        module = self.env["ir.module.module"].search([("name", "=", "test_sidestream")])
        module.button_uninstall()
        self.assertEqual(module.state, "to remove")

    def test_neutralize(self):
        job, done = self.order.enqueue().remember(), self.order.enqueue().remember()
        self.end(done, "done")
        uuid = self.env["sidestream.job"]._sidestream_idempotency_key(1)
        self.env.flush_all()
        with file_open("sidestream/data/neutralize.sql") as file:
            self.env.cr.execute(file.read().strip())
        self.env.invalidate_all()
        self.assertEqual((job.state, done.state), ("cancelled", "done"))
        self.assertIn("neutralized", job.message)
        self.assertNotEqual(self.env["sidestream.job"]._sidestream_idempotency_key(1), uuid)
        self.assertEqual(self.order.enqueue().remember().state, "pending")

    def test_everything_can_be_translated(self):
        """The template holds every text of this release: make it anew with ``odoo i18n export`` (CONTRIBUTING.md)."""
        made = BytesIO()
        trans_export(None, ["sidestream"], made, "po", self.env)
        with file_open("sidestream/i18n/sidestream.pot") as file:
            kept = {entry.msgid for entry in polib.pofile(file.read())}
        self.assertEqual(kept, {entry.msgid for entry in polib.pofile(made.getvalue().decode())})

    def test_people_read_their_own_language(self):
        self.env["res.lang"]._activate_lang("fr_FR")
        archived = "The user %s is archived. Unarchive the user, then retry the job."
        words = {
            ("test_sidestream", "fr_FR"): {"In your language": "Dans votre langue"},
            ("sidestream", "fr_FR"): {archived: "%s est archivé.", "Starts in %s": "Commence dans %s"},
        }
        with patch.dict(code_translations.python_translations, words), self.trap() as trap:
            order = self.order.with_user(self.user).with_context(lang="fr_FR")
            job = order.enqueue(delay=7200).labelled()
            self.assertEqual((job.name, job.message), ("Dans votre langue", "Commence dans 2\u202fh"))
            self.assertEqual(job.with_context(lang="en_US").name, "In your language")
            self.assertIn(job, job.search([("name", "ilike", "votre langue")]))
            self.user.active = False
            with self.assertRaisesRegex(GiveUp, "Ute User est archivé"):
                trap.perform()

    def test_idempotency_key_is_the_same_each_time(self):
        jobs = self.env["sidestream.job"]
        self.assertEqual(jobs._sidestream_idempotency_key(5), jobs._sidestream_idempotency_key(5))
        self.assertNotEqual(jobs._sidestream_idempotency_key(5), jobs._sidestream_idempotency_key(6))
        self.assertNotEqual(jobs._sidestream_idempotency_key(5, "a"), jobs._sidestream_idempotency_key(5, "b"))

    def test_pending_and_failed_jobs_are_found_by_their_indexes(self):
        """The menu's first list: among a million that are done it must not look at those."""
        query = self.env["sidestream.job"]._search([("state", "in", ["pending", "failed"])])
        self.env.cr.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off")
        self.env.cr.execute(SQL("EXPLAIN %s", query.select()))
        plan = "\n".join(line for (line,) in self.env.cr.fetchall())
        self.assertIn("BitmapOr", plan)
        self.assertIn("sidestream_job_ended", plan)

from datetime import UTC, datetime, timedelta, timezone
from unittest.mock import patch

from psycopg2 import errors
from psycopg2.extensions import parse_dsn

from sidestream import InvalidJob, SettingsError, UnknownAction, UnsupportedOption, declared

from odoo import fields
from odoo.exceptions import AccessError, LockError, MissingError, RedirectWarning, UserError, ValidationError
from odoo.tools import config

from odoo.addons.sidestream import INLINE, enqueue

from .common import JobCase


class TestEnqueue(JobCase):
    def test_a_new_job_is_pending_and_due(self):
        job = self.order.enqueue().remember()
        self.assertEqual((job.state, job.action), ("pending", "test.sidestream.order.remember"))
        self.assertEqual(job.queue, "default")
        self.assertFalse(job.key)
        self.assertEqual(self.order._sidestream_jobs(), job)
        self.assertFalse(self.orders[1]._sidestream_jobs())
        self.assertEqual(job.records, "O0")
        self.assertEqual(job.name, "Remember")

    def test_several_records_are_one_job(self):
        job = self.orders.enqueue().remember()
        self.assertEqual(len(job), 1)
        for order in self.orders:
            self.assertEqual(order._sidestream_jobs(), job)
        self.assertEqual(self.orders._sidestream_jobs(), job)

    def test_no_records(self):
        job = self.env["test.sidestream.order"].enqueue().remember()
        self.assertEqual(job.state, "pending")
        self.assertFalse(job.records)
        self.assertFalse(self.env["test.sidestream.order"]._sidestream_jobs())

    def test_queue(self):
        self.assertEqual(self.order.enqueue(queue="pdf").remember().queue, "pdf")
        self.assertEqual(self.order.enqueue().remember_as_superuser().queue, "system")
        self.assertEqual(self.order.enqueue(queue="pdf").remember_as_superuser().queue, "pdf")
        with self.assertRaises(InvalidJob):
            self.order.enqueue(queue="not a queue").remember()

    def test_key(self):
        self.assertEqual(self.order.enqueue(key="mine").remember().key, "mine")
        self.assertEqual(self.order.enqueue().ship().key, f"carrier:{self.carrier.id}")
        self.assertEqual(self.order.enqueue(key="mine").ship().key, "mine")
        self.assertEqual(self.order.enqueue().ship_on_account().key, "account:A1/{x}")
        self.carrier.account = False
        self.assertEqual(self.order.enqueue().ship_on_account().key, "account:none/{x}")

    def test_key_of_several_records(self):
        self.assertEqual(self.orders.enqueue().ship().key, f"carrier:{self.carrier.id}")
        self.orders[1].carrier_id = False
        with self.assertRaisesRegex(InvalidJob, "2 values .* split=1"):
            (self.orders[0] + self.orders[2] + self.orders[1]).mapped("carrier_id").ensure_one()
            self.orders[1].carrier_id = self.carrier.copy()
            self.orders.enqueue().ship()
        self.assertEqual(len(self.orders.enqueue(split=1).ship()), 3)

    def test_key_without_a_value(self):
        self.order.carrier_id = False
        self.assertEqual(self.order.enqueue().ship().key, "carrier:none")

    def test_key_uses_fields_that_the_user_cannot_read(self):
        public = self.env.ref("base.public_user")
        self.assertEqual(self.order.with_user(public).enqueue().ship_on_account().sudo().key, "account:A1/{x}")

    def test_key_of_a_function(self):
        self.assertEqual(self.orders[:2].enqueue().ship_by_function().key, "names:O0+O1")
        self.assertFalse(self.orders.enqueue().ship_by_function().key)
        jobs = self.orders.enqueue(split=2).ship_by_function()
        self.assertEqual(jobs.sorted("id").mapped("key"), ["names:O0+O1", "names:O2"])

    def test_key_of_an_unknown_field(self):
        with self.assertRaisesRegex(InvalidJob, "'nothing_like_that', which is not a field of test.sidestream.order"):
            self.order.enqueue().ship_nowhere()

    def test_run_at(self):
        at = datetime(2031, 5, 4, 12, 0, tzinfo=timezone(timedelta(hours=2)))
        self.assertEqual(self.order.enqueue(run_at=at).remember().run_at, datetime(2031, 5, 4, 10, 0))
        self.assertEqual(
            self.order.enqueue(run_at=datetime(2031, 5, 4, 10, 0)).remember().run_at, datetime(2031, 5, 4, 10, 0)
        )
        job = self.order.enqueue(run_at=fields.Datetime.now() + timedelta(days=1)).remember()
        self.assertRegex(job.message, "^Starts in ")
        self.assertEqual(self.order.enqueue(run_at="2031-05-04 10:00").remember().run_at, datetime(2031, 5, 4, 10, 0))
        job = self.order.enqueue(run_at="2031-05-04 12:00", time_zone="Europe/Brussels").remember()
        self.assertEqual(job.run_at, datetime(2031, 5, 4, 10, 0))
        with self.assertRaisesRegex(InvalidJob, "time_zone='Europe/Nowhere'"):
            self.order.enqueue(run_at="2031-05-04", time_zone="Europe/Nowhere").remember()
        for wrong in ("tomorrow", at.date()):
            with self.assertRaisesRegex(InvalidJob, "run_at"):
                self.order.enqueue(run_at=wrong).remember()

    def test_delay(self):
        for delay in (3600, timedelta(hours=1)):
            job = self.order.enqueue(delay=delay).remember()
            wait = job.run_at.replace(tzinfo=UTC) - datetime.now(UTC)
            self.assertAlmostEqual(wait.total_seconds(), 3600, delta=60)
        for wrong in (-1, "soon", float("nan"), True):
            with self.assertRaisesRegex(InvalidJob, "delay"):
                self.order.enqueue(delay=wrong).remember()
        with self.assertRaisesRegex(InvalidJob, "run_at and delay"):
            self.order.enqueue(delay=1, run_at=datetime(2031, 1, 1)).remember()

    def test_split(self):
        orders = self.env["test.sidestream.order"].create([{"name": str(number)} for number in range(120)])
        jobs = orders.enqueue(split=50).remember()
        self.assertEqual(len(jobs), 3)
        sizes = []
        for job in jobs.sorted("id"):
            self.env.cr.execute("SELECT count(*) FROM sidestream_job_record WHERE job_id = %s", [job.id])
            sizes.append(self.env.cr.fetchone()[0])
        self.assertEqual(sizes, [50, 50, 20])
        self.assertEqual(len(orders._sidestream_jobs()), 3)
        self.assertEqual(jobs[-1:].records.count("and"), 1)
        self.assertFalse(orders.browse().enqueue(split=50).remember())
        for wrong in (0, -1, "2", True, 1.5):
            with self.assertRaisesRegex(InvalidJob, "split"):
                self.order.enqueue(split=wrong).remember()

    def row_of(self, job):
        """Return what the model does not show."""
        self.env.cr.execute(
            "SELECT priority, group_name, limit_key, unique_key, unique_until, expires_at > run_at "
            "FROM sidestream_job WHERE id = %s",
            [job.id],
        )
        return self.env.cr.fetchone()

    def test_priority_group_limit_and_expiry(self):
        company = f"company:{self.env.company.id}"
        self.assertEqual(self.row_of(self.order.enqueue().remember()), (5, company, None, None, None, None))
        job = self.order.enqueue(priority=0, group="mine", limit="courier:7", expires_in=60).remember()
        self.assertEqual(self.row_of(job), (0, "mine", "courier:7", None, None, True))
        job = self.order.enqueue().book()
        carrier = f"courier:{self.carrier.id}"
        self.assertEqual(self.row_of(job), (2, company, carrier, f"book:{self.order.id}", "started", True))
        self.assertEqual(self.row_of(self.order.enqueue(limit="other", priority=9).book())[2], carrier)
        refused = (({"priority": 10}, "priority 10"), ({"limit": ":"}, "limit rule"), ({"expires_in": 0}, "above 0"))
        for wrong, said in refused:
            with self.assertRaisesRegex(InvalidJob, said):
                self.order.enqueue(**wrong).remember()

    def test_a_duplicate_returns_the_first_job(self):
        first = self.order.enqueue().book()
        self.assertEqual(self.order.enqueue().book(), first)
        self.assertEqual(len(self.orders.enqueue(split=1).book()), 3)
        self.assertEqual(len(self.orders.enqueue(split=1, unique="one for all").remember()), 1)
        self.assertNotEqual(self.order.enqueue(unique="another").book(), first)
        with self.assertRaisesRegex(InvalidJob, "on_conflict='drop'"):
            self.order.enqueue(unique="x", on_conflict="drop").remember()

    def test_arguments_that_the_method_does_not_take(self):
        for call, said in (
            (lambda: self.order.enqueue().chain(), "missing a required argument: 'times'"),
            (lambda: self.order.enqueue().chain(1, 2), "too many positional arguments"),
            (lambda: self.order.enqueue().chain(times=1, tmies=2), "unexpected keyword argument 'tmies'"),
            (lambda: self.order.with_context(sidestream_inline=INLINE).enqueue().chain(), "'times'"),
        ):
            with self.assertRaisesRegex(InvalidJob, f"test.sidestream.order.chain.* {said}"):
                call()
        self.assertFalse(self.order._sidestream_jobs())

    def test_enqueue_without_a_method(self):
        self.env.cr.flush()
        for call in (
            lambda order: order.enqueue(),
            lambda order: order.enqueue(delay=3).ship,
        ):
            call(self.order)
            with self.assertRaisesRegex(InvalidJob, r"test_enqueue.py:[0-9]+ .*names no method"):
                self.env.cr.flush()
            self.env.cr.flush()  # told once
        with self.assertRaisesRegex(InvalidJob, r"enqueue\(\)\.method"):
            self.order.enqueue()()
        self.order.enqueue().ship()
        self.env.cr.flush()
        with self.assertRaises(KeyError), self.env.cr.savepoint():
            self.order.enqueue()
            raise KeyError("the savepoint ends")
        self.env.cr.precommit.clear()

    def test_business_errors_end_a_job_unless_the_action_says_otherwise(self):
        order = type(self.order)
        more = {"UserError": LockError("x"), "OSError": OSError("x")}
        for error in (
            UserError("x"), ValidationError("x"), AccessError("x"), MissingError("x"), RedirectWarning("x", 1, "y"),
            TypeError("x"),
        ):  # fmt: skip
            with self.subTest(error=error):
                self.assertEqual(declared(order, "chain").retry.for_error(error).max_attempts, 1)
                self.assertEqual(declared(order, "book").retry.for_error(error).max_attempts, 1)
                self.assertEqual(declared(order, "pull").retry.for_error(error).max_attempts, 1)
        self.assertEqual(declared(order, "read_often").retry.for_error(AccessError("x")).max_attempts, 3)
        self.assertEqual(declared(order, "read_often").retry.for_error(TypeError("x")).max_attempts, 1)
        for name, error in more.items():
            with self.subTest(error=name):
                self.assertEqual(declared(order, "chain").retry.for_error(error).max_attempts, 5)
                self.assertEqual(declared(order, "pull").retry.for_error(error).max_attempts, 9)

    def test_unknown_option(self):
        with self.assertRaisesRegex(UnsupportedOption, "no option 'cron'.*queue, key, priority, .*split"):
            self.order.enqueue(cron="* * * * *")

    def test_only_declared_methods(self):
        with self.assertRaisesRegex(UnknownAction, "'not_declared' of test.sidestream.order cannot run.*@action"):
            self.order.enqueue().not_declared()
        with self.assertRaisesRegex(UnknownAction, "'unlink' of test.sidestream.order cannot run"):
            self.order.enqueue().unlink()
        with self.assertRaisesRegex(UnknownAction, "has no method 'remembre'"):
            self.order.enqueue().remembre()
        self.assertFalse(hasattr(self.order.enqueue(), "__deepcopy__"))

    def test_private_method_and_its_override(self):
        with self.trap() as trap:
            self.order.enqueue()._private()
            trap.perform()
        self.assertEqual(self.order.note, "private and more")

    def test_renamed_method(self):
        with self.trap() as trap:
            job = self.order.enqueue().remember()
            self.env.cr.execute(
                "UPDATE sidestream_job SET action = 'test.sidestream.order.old_name' WHERE id = %s", [job.id]
            )
            self.env.invalidate_all()
            self.assertEqual(job.name, "Old name")  # shown all the same
            with self.assertRaises(AttributeError):
                trap.perform()

    def test_unsaved_record(self):
        with self.assertRaisesRegex(InvalidJob, "not saved yet"):
            self.env["test.sidestream.order"].new({"name": "x"}).enqueue().remember()
        with self.assertRaisesRegex(InvalidJob, "not saved yet"):
            self.env["test.sidestream.order"].new({"name": "x"}, origin=self.order).enqueue().remember()

    def test_savepoint_rolled_back(self):
        before = self.count()
        with self.assertRaises(KeyError), self.env.cr.savepoint():
            self.order.enqueue().remember()
            self.assertEqual(self.count(), before + 1)
            raise KeyError("the savepoint ends")
        self.assertEqual(self.count(), before)
        self.assertFalse(self.order._sidestream_jobs())

    def test_rollback_leaves_nothing_to_publish(self):
        with self.registry.cursor() as cr:
            self.env(cr=cr)["res.partner"]._sidestream_jobs()
            orders = self.env(cr=cr)["test.sidestream.order"]
            orders.enqueue().remember()
            self.assertEqual(len(cr.postcommit.data["sidestream.publications"]), 1)
            cr.rollback()
            self.assertFalse(cr.postcommit.data)
            orders.enqueue().remember()
            orders.enqueue().remember()
            self.assertEqual(len(cr.postcommit), 1)
            self.assertEqual(len(cr.postcommit.data["sidestream.publications"]), 2)
            cr.rollback()

    def test_published_once_after_the_commit(self):
        published = []

        class Client:
            insert = enqueue.jobs_of(self.env.cr.dbname).insert

            def hand_over(self, publications):
                published.append(list(publications))
                raise RuntimeError("Redis is away, and worse")

        self.patch(enqueue, "jobs_of", lambda database: Client())
        self.orders.enqueue(split=1).remember()
        self.order.enqueue().remember()
        self.assertFalse(published)
        with self.assertLogs("odoo.addons.sidestream.enqueue", "ERROR"):  # told, and nothing raised
            self.env.cr.postcommit.run()
        self.assertEqual([len(one) for one in published], [4])

    def test_company_that_switched_off(self):
        self.company.sidestream_enabled = False
        with self.trap() as trap:
            self.assertFalse(self.order.enqueue().remember("now"))
            self.order.with_company(self.other_company).enqueue().remember()
        self.assertEqual(len(trap.jobs), 1)
        self.assertEqual(self.remembered()["args"], "('now',)")

    def test_a_scheduled_job_of_a_company_that_switched_off(self):
        """A reminder of next month is not for now because somebody switched off."""
        self.company.sidestream_enabled = False
        for options in ({"delay": 3600}, {"run_at": "2099-01-01"}):
            job = self.order.enqueue(**options).remember()
            self.assertEqual(job.state, "pending")
        self.assertFalse(self.order.note)

    def test_parts_are_not_committed_in_the_user_s_transaction(self):
        """TransactionCase fails on every commit; what was half done goes with the user's own work."""
        orders = self.orders.with_context(sidestream_inline=INLINE)
        before = self.env.cr.commit
        orders[0].enqueue().in_parts()
        self.assertEqual(orders[0].note, "both parts")
        orders[1].carrier_id = False
        with self.assertRaisesRegex(UserError, "No carrier"), self.env.cr.savepoint():
            orders[1].enqueue().in_parts()
        self.assertFalse(orders[1].note)
        self.assertEqual(self.env.cr.commit, before)
        with self.trap() as trap:
            self.orders[2].enqueue().in_parts()
        trap.perform()
        self.assertEqual(self.orders[2].note, "both parts")
        self.assertEqual(self.env.cr.commit, before)

    def test_the_company_switch_is_cached(self):
        self.order.enqueue().remember()
        with self.assertQueryCount(0):  # the job's own INSERTs go past Odoo's cursor
            self.order.enqueue().remember()
        before = self.count()
        self.company.sidestream_enabled = False
        self.order.enqueue().remember("now")
        self.company.sidestream_enabled = True
        self.order.enqueue().remember("later")
        self.assertEqual(self.count(), before + 1)

    def test_the_company_switch_read_by_another_thread_is_not_stale(self):
        """Between the change and its commit it reads the old value, and would keep it."""
        self.company.sidestream_enabled = False
        cleared = []
        self.patch(type(self.env.registry), "clear_cache", lambda registry, *names: cleared.append(names))
        self.env.cr.postcommit.run()
        self.assertEqual(cleared, [()])

    def test_inline(self):
        orders = self.orders.with_context(sidestream_inline=INLINE)
        before = self.count()
        orders.with_user(self.user).enqueue().remember_as_superuser()
        self.assertTrue(self.remembered()["su"])
        orders.with_user(self.user).enqueue().remember_as_service()
        self.assertEqual((self.remembered()["uid"], self.remembered()["su"]), (self.service.id, False))
        orders.enqueue(split=1).call_courier()
        self.assertEqual([order.note.split()[:2] for order in orders], [[f"O{n}", "ok"] for n in range(3)])
        self.assertEqual(len({order.note for order in orders}), 3)
        self.order.with_context(sidestream_inline=INLINE).enqueue().call_nothing()
        self.assertEqual(self.count(), before)

    def test_inline_as_a_service_user_with_fewer_companies(self):
        self.user.company_ids += self.other_company
        both = [self.company.id, self.other_company.id]
        order = self.order.with_user(self.user).with_context(allowed_company_ids=both, sidestream_inline=INLINE)
        order.enqueue().remember_as_service()
        self.assertEqual((self.remembered()["uid"], self.remembered()["companies"]), (self.service.id, both[:1]))

    def test_a_read_only_cursor(self):
        """Odoo looks for this class, and begins the request again with one that writes."""
        self.order.enqueue().remember()
        with self.assertRaises(errors.ReadOnlySqlTransaction), self.env.cr.savepoint():
            self.env.cr.execute("SET TRANSACTION READ ONLY")
            self.order.enqueue().remember()

    def test_settings_use_the_database_server_of_odoo(self):
        """Also when that stands in no file."""
        with patch.dict(config.options, {"db_host": "db.internal", "db_port": 6432, "db_user": "ann"}):
            address = enqueue.settings_of("shop").database_url
        self.assertEqual(
            parse_dsn(address), {"dbname": "shop", "host": "db.internal", "port": "6432", "user": "ann"} | {
                name: value for name, value in parse_dsn(address).items() if name in ("password", "sslmode")},
        )  # fmt: skip

    def test_wrong_settings_are_not_the_user_s_error(self):
        wrong = patch.object(enqueue, "settings_of", side_effect=SettingsError("There is no setting 'nise'."))
        fresh = patch.dict(enqueue._jobs, clear=True)
        with fresh, wrong, self.assertLogs("odoo.addons.sidestream.enqueue", "ERROR") as logged:
            job = self.order.enqueue().remember()
            self.assertEqual(job.state, "pending")
            self.order.enqueue().remember()
        self.assertEqual(len(logged.output), 1)
        self.assertIn("There is no setting 'nise'.", logged.output[0])

    def test_the_identity_of_the_database_is_read_again_after_modules_changed(self):
        jobs = enqueue.jobs_of(self.env.cr.dbname)
        self.order.enqueue().remember()
        self.assertTrue(len(jobs._databases))
        self.env["sidestream.job"]._register_hook()
        self.assertFalse(len(jobs._databases))

    def test_too_large(self):
        with self.assertRaisesRegex(InvalidJob, "64|65536"):
            self.order.enqueue().remember("x" * 70000)

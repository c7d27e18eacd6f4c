from contextlib import suppress

from sidestream import InvalidJob, SidestreamError, UnsupportedOption

from odoo.exceptions import UserError
from odoo.tests import HttpCase

from odoo.addons.sidestream import INLINE, action

from .common import JobCase


class TestTrap(JobCase):
    """The helper that integrators test with."""

    def test_assert_enqueued(self):
        with self.trap() as trap:
            self.order.enqueue(key="k", queue="pdf", delay=5).remember(1, two=2)
            self.orders.enqueue(split=2).ship()
        trap.assert_enqueued("remember")
        trap.assert_enqueued(self.order.remember, args=(1,), kwargs={"two": 2}, key="k", queue="pdf", delay=5, count=1)
        trap.assert_enqueued("ship", self.orders[:2], split=2, key=f"carrier:{self.carrier.id}")
        trap.assert_enqueued("ship", count=2)
        trap.assert_enqueued("fail", count=0)
        for wrong in (
            {"method": "ship", "count": 1},
            {"method": "fail"},
            {"method": "remember", "args": (2,)},
            {"method": "remember", "key": "other"},
            {"method": "ship", "records": self.orders},
        ):
            with self.assertRaisesRegex(AssertionError, "(?s)The enqueued jobs are:.*remember"):
                trap.assert_enqueued(**wrong)
        with self.assertRaises(AssertionError):
            trap.assert_nothing_enqueued()

    def test_rolled_back_jobs_are_not_trapped(self):
        with self.trap() as trap:
            with self.assertRaises(KeyError), self.env.cr.savepoint():
                self.order.enqueue().remember()
                trap.assert_enqueued(self.order.remember, count=1)
                raise KeyError("the savepoint ends")
            trap.assert_nothing_enqueued()
            self.order.enqueue().ship()
        trap.assert_enqueued("remember", count=0)
        with self.assertRaisesRegex(
            AssertionError, r"found 0. The enqueued jobs are:\n  test.sidestream.order\(.*\).ship"
        ):
            trap.assert_enqueued("remember")
        trap.perform()
        self.assertEqual(self.order.note, "shipped")

    def test_jobs_of_a_request_are_trapped(self):
        """As in a HttpCase: each request has a cursor of its own upon the test's, and it is closed when one looks."""

        def request(method, error=None):
            with suppress(KeyError), self.registry.cursor() as cr:
                getattr(self.order.with_env(self.env(cr=cr, user=self.user.id)).enqueue(), method)()
                if error is not None:
                    raise error

        with self.enter_registry_test_mode(), self.trap() as trap:
            request("remember")
            request("ship", KeyError("what failed is rolled back"))
            trap.assert_enqueued("ship", count=0)
            [found] = trap.assert_enqueued(self.order.remember, count=1)
            self.assertEqual((found.job.state, found.records.name), ("pending", "O0"))
            self.assertEqual(found.job.env.uid, self.user.id)
            trap.perform()
            self.assertEqual(found.job.state, "done")
        self.assertEqual(self.remembered()["uid"], self.user.id)

    def test_nothing_is_published(self):
        with self.trap() as trap:
            trap.assert_nothing_enqueued()
            self.order.enqueue().remember()
        self.assertNotIn("sidestream.publications", self.env.cr.postcommit.data)

    def test_performed_once_in_order_with_what_follows(self):
        with self.trap() as trap:
            job = self.order.enqueue().chain(3)
            trap.perform()
            self.assertEqual(self.order.note, "1")
            self.assertEqual(len(trap.jobs), 3)
            self.order.note = "again"
            trap.perform()
        self.assertEqual(self.order.note, "again")
        self.assertEqual(job.state, "done")
        self.assertEqual(trap.assert_enqueued("chain", args=(2,))[0].records, self.order)

    def test_performed_after_the_block(self):
        with self.trap() as trap:
            self.order.with_user(self.user).enqueue().remember()
            self.orders[1].enqueue().chain(2)
        trap.perform()
        self.assertEqual((self.orders[1].note, len(trap.jobs)), ("1", 3))
        self.assertEqual(self.remembered()["uid"], self.user.id)
        self.assertEqual(self.env.transaction.default_env.uid, self.env.uid)

    def test_three_steps(self):
        with self.trap() as trap:
            job = self.order.enqueue().call_courier(answer="fine")
            trap.perform()
            key = self.env["sidestream.job"]._sidestream_idempotency_key(job.id)
            self.assertEqual(self.order.note, f"O0 fine {key}")
            self.order.enqueue().call_nothing()
            trap.perform()
            self.order.enqueue().call_twice()
            with self.assertRaisesRegex(SidestreamError, "yielded twice"):
                trap.perform()

    def test_three_steps_do_not_share_a_transaction(self):
        """What a worker would not allow, or would undo, a test sees."""
        with self.trap() as trap:
            self.order.enqueue().write_too_early()
            trap.perform()
            self.assertEqual(self.order.note, "after")
            self.assertEqual(self.order.name, "O0")
            self.order.enqueue().ask_too_late()
            with self.assertRaisesRegex(AssertionError, "used the database"):
                trap.perform()

    def test_failure_is_rolled_back(self):
        with self.trap() as trap:
            job = self.order.enqueue().fail()
            with self.assertRaisesRegex(UserError, "It failed"):
                trap.perform()
        self.assertFalse(self.order.note)
        self.assertEqual(job.state, "pending")

    def test_cancelled_job_does_not_run(self):
        with self.trap() as trap:
            job = self.order.enqueue().remember()
            job.action_cancel()
            trap.perform()
        self.assertFalse(self.order.note)

    def test_generators_declare_three_steps(self):
        def generator(self):
            yield

        with self.assertRaisesRegex(InvalidJob, "three_step"):
            action(generator)
        with self.assertRaisesRegex(InvalidJob, "declares three_step"):
            action(three_step=True)(lambda self: None)

    def test_overrides_yield_as_the_action_declares(self):
        """No decorator saw them: what a worker refuses, a test sees, and whoever calls inline."""
        for context in ({}, {"sidestream_inline": INLINE}):
            order = self.order.with_context(**context)
            for method, said in (
                ("finish", "order.finish' returned a generator, so none of its code ran; expected"),
                ("call_and_finish", "order.call_and_finish' returned True; expected .* yields its call"),
            ):
                with (
                    self.subTest(context=context, method=method),
                    self.trap() as trap,
                    self.assertRaisesRegex(SidestreamError, said),
                ):
                    getattr(order.enqueue(), method)()
                    trap.perform()
            with self.trap() as trap:
                order.note = False
                order.enqueue().call_for_another()
                trap.perform()
            self.assertEqual(order.note, "called")

    def test_asynchronous_methods_are_refused(self):
        async def method(self):
            pass

        async def generator(self):
            yield

        for one in (method, generator):
            with self.assertRaisesRegex(InvalidJob, "async"):
                action(one)
        for context in ({}, {"sidestream_inline": INLINE}):
            with self.trap() as trap, self.assertRaisesRegex(SidestreamError, "returned a coroutine"):
                self.order.with_context(**context).enqueue().wait()
                trap.perform()

    def test_unknown_options_of_a_declaration_are_named(self):
        with self.assertRaisesRegex(UnsupportedOption, "no option 'cron' for @action; the options are queue, key"):
            action(cron="* * * * *")


class TestTrapOverHttp(JobCase, HttpCase):
    def test_jobs_of_the_web_client_are_trapped(self):
        self.authenticate(self.user.login, self.user.login)
        call = {"model": self.order._name, "method": "start", "args": [self.order.ids, "chain", 2], "kwargs": {}}
        with self.trap() as trap:
            self.make_jsonrpc_request("/web/dataset/call_kw", call)
        [found] = trap.assert_enqueued(self.order.chain, args=(2,), count=1)
        self.assertEqual((found.job.state, found.job.env.uid), ("pending", self.user.id))
        trap.perform()
        trap.assert_enqueued(self.order.chain, count=2)
        self.assertEqual((self.order.note, found.job.state), ("1", "done"))

from sidestream import InvalidJob

from odoo.tests import HttpCase, JsonRpcException

from odoo.addons.sidestream import INLINE, action

from .common import JobCase


class TestRpc(JobCase, HttpCase):
    """What a browser or a script may reach: it calls public methods, and its context is JSON."""

    def setUp(self):
        super().setUp()
        self.authenticate(self.user.login, self.user.login)

    def call(self, method, *args, **context):
        params = {
            "model": self.order._name,
            "method": method,
            "args": [self.order.ids, *args],
            "kwargs": {"context": context},
        }
        return self.make_jsonrpc_request("/web/dataset/call_kw", params)

    def test_an_action_cannot_be_called(self):
        for method, args in (("chain", [1]), ("ship", []), ("call_courier", []), ("finish", [])):
            with (
                self.subTest(method=method),
                self.assertLogs("odoo.http", "WARNING") as logged,
                self.assertRaisesRegex(JsonRpcException, "AccessError"),
            ):
                self.call(method, *args)
            self.assertIn(f"Private methods (such as 'test.sidestream.order.{method}')", logged.output[0])
        self.assertFalse(self.order.note)

    def test_an_action_that_is_declared_public_can_be_called(self):
        self.call("ship_in_public")
        self.assertEqual(self.order.note, "shipped in public")

    def test_a_context_that_arrives_as_json_does_not_run_actions_inline(self):
        for value in (True, 1, "INLINE", {"sidestream": True}):
            before = self.count()
            with self.assertLogs("odoo.addons.sidestream.enqueue", "WARNING") as logged:
                self.call("start", "ship", sidestream_inline=value)
            self.assertIn("sidestream_inline is ignored", logged.output[0])
            self.assertEqual(self.count(), before + 1)
        self.assertFalse(self.order.note)

    def test_python_code_runs_actions_inline(self):
        before = self.count()
        self.order.with_context(sidestream_inline=INLINE).enqueue().ship()
        self.assertEqual((self.order.note, self.count()), ("shipped", before))

    def test_a_public_action_has_no_three_steps(self):
        def generator(self):
            yield

        with self.assertRaisesRegex(InvalidJob, "public=True .* three_step"):
            action(public=True, three_step=True)(generator)

    def test_a_time_zone_and_a_language_that_do_not_exist_are_left_out(self):
        context = {"tz": "x" * 1_000_000, "lang": "tlh_KX"}
        [job_id] = self.call("start", "remember", **context)
        self.env.cr.execute("SELECT context FROM sidestream_job WHERE id = %s", [job_id])
        [kept] = self.env.cr.fetchone()
        self.assertNotIn("tz", kept)
        self.assertNotIn("lang", kept)

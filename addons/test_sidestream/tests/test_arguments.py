from datetime import UTC, date, datetime, time
from decimal import Decimal

from markupsafe import Markup

from sidestream import GiveUp, InvalidJob

from odoo.addons.sidestream.serialization import decode, encode

from .common import JobCase


class TestArguments(JobCase):
    def test_round_trip(self):
        partner = self.env["res.partner"].create({"name": "P"})
        given = [
            None,
            True,
            1,
            1.5,
            "text",
            "ümläut €",
            Markup("<b>bold</b>"),
            date(2026, 2, 28),
            datetime(2026, 2, 28, 12, 30, 15, 123456),
            datetime(2026, 2, 28, 12, 30, tzinfo=UTC),
            Decimal("12.340"),
            [1, [2, {"three": Decimal(3)}]],
            {"a": {"b": [date(2026, 1, 1), None]}},
            partner,
            self.orders,
            self.orders.browse(),
        ]
        with self.trap() as trap:
            self.order.with_user(self.user).enqueue().remember(*given, named=partner, amount=Decimal("0.1"))
            trap.perform()
        seen = self.remembered()
        self.assertEqual(seen["args"], repr(tuple(given)))
        self.assertEqual(seen["kwargs"], repr({"named": partner, "amount": Decimal("0.1")}))

    def test_records_arrive_in_the_jobs_environment(self):
        env = self.env(user=self.user, su=False)
        found = decode(env, encode(self.order.sudo()))
        self.assertEqual((found, found.env.uid, found.env.su), (self.order, self.user.id, False))

    def test_tuple_becomes_a_list(self):
        self.assertEqual(decode(self.env, encode((1, (2,)))), [1, [2]])

    def test_unsaved_record(self):
        for draft in (
            self.env["res.partner"].new({"name": "x"}),
            self.env["res.partner"].new({"name": "x"}, origin=self.user.partner_id),
        ):
            with self.assertRaisesRegex(InvalidJob, r"arguments\[0\] holds a record of res.partner .* not saved yet"):
                self.order.enqueue().remember(draft)

    def test_arguments_that_a_job_cannot_store(self):
        for wrong in (b"bytes", {1, 2}, time(12), object(), self.env):
            with self.assertRaisesRegex(InvalidJob, r"arguments\[1\] is a \w+, which a job cannot store"):
                self.order.enqueue().remember(1, wrong)
        with self.assertRaisesRegex(InvalidJob, r"amounts\['a'\]\[1\] is a bytes"):
            self.order.enqueue().remember(amounts={"a": [1, b"x"]})
        for wrong in ({1: 2}, {"$": "records"}):
            with self.assertRaisesRegex(InvalidJob, "keys are not text"):
                self.order.enqueue().remember(wrong)
        with self.assertRaises(InvalidJob):
            self.order.enqueue().remember(float("nan"))
        self.assertFalse(self.order._sidestream_jobs())

    def test_the_model_of_an_argument_no_longer_exists(self):
        with self.assertRaisesRegex(GiveUp, "no longer has"):
            decode(self.env, {"$": "records", "model": "gone.model", "ids": [1]})
        with self.assertRaisesRegex(GiveUp, "does not know"):
            decode(self.env, {"$": "matrix", "value": 1})

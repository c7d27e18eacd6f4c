import json

from odoo.tests import TransactionCase, new_test_user

from odoo.addons.sidestream.tests.common import trap_jobs


class JobCase(TransactionCase):
    """Two companies, a user, a colleague, a manager, a carrier and orders."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.company = cls.env.company
        cls.other_company = cls.env["res.company"].create({"name": "Other Company"})
        groups = "base.group_user,base.group_partner_manager"
        cls.user = new_test_user(cls.env, "sidestream_user", groups, name="Ute User")
        cls.colleague = new_test_user(cls.env, "sidestream_colleague", groups, name="Carl Colleague")
        cls.manager = new_test_user(
            cls.env, "sidestream_manager", f"{groups},sidestream.group_sidestream_manager", name="Mia"
        )
        cls.service = new_test_user(cls.env, "sidestream_service", groups, name="Service")
        cls.env["ir.model.data"].create(
            {"module": "test_sidestream", "name": "service", "model": "res.users", "res_id": cls.service.id}
        )
        cls.carrier = cls.env["test.sidestream.carrier"].create({"name": "Fast", "account": "A1"})
        cls.orders = cls.env["test.sidestream.order"].create(
            [{"name": f"O{number}", "carrier_id": cls.carrier.id} for number in range(3)]
        )
        cls.order = cls.orders[0]

    def trap(self):
        return trap_jobs()

    def remembered(self, order=None):
        """Return what ``remember`` noted."""
        return json.loads((order or self.order).note)

    def row(self, job, column):
        """Return a column of the job's row."""
        self.env.cr.execute(f"SELECT {column} FROM sidestream_job WHERE id = %s", [job.id])
        return self.env.cr.fetchone()[0]

    def count(self):
        self.env.cr.execute("SELECT count(*) FROM sidestream_job")
        return self.env.cr.fetchone()[0]

    def end(self, jobs, state, error=None):
        """Let jobs end as a worker would have."""
        self.env.cr.execute(
            "UPDATE sidestream_job SET state = %s, error = %s, ended_at = now() AT TIME ZONE 'UTC' WHERE id = ANY(%s)",
            [state, error, jobs.ids],
        )
        self.env.invalidate_all()

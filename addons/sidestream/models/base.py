from odoo import api, models

from ..enqueuing import Enqueuer


class Base(models.AbstractModel):
    _inherit = "base"

    @api.private
    def enqueue(self, **options):
        """Return what runs this recordset's actions in the background: ``records.enqueue().action(*args)``.

        The job exists if, and only if, this transaction commits; it runs as the current user, in the current company,
        language and time zone, never as superuser unless the action says so. Calling the method returns the jobs.

        :param str queue: the backlog, else the action's own
        :param str key: jobs with the same key run one at a time, in the order of their ids; else the action's own
        :param datetime run_at: not before (UTC when naive, as Odoo's datetimes are)
        :param delay: not before so many seconds (or a timedelta) from now
        :param int split: one job for each so many records
        """
        return Enqueuer(self, options)

    def _sidestream_jobs(self):
        """Return the jobs that are about these records, newest first."""
        return self.env["sidestream.job"]._of_records(self)

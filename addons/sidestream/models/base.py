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
        :param int priority: 0 (first) to 9 within its queue
        :param str group: the tenant among whom the queue is shared fairly, else ``company:<id>``
        :param str limit: what it counts against, ``rule`` or ``rule:value``, else the action's own
        :param unique: what makes a second job a duplicate: a text, or a :class:`sidestream.Unique`; with
            ``unique_until`` ("started", "done", "window"), ``unique_for`` (seconds) and ``on_conflict`` ("return",
            "replace", "newest")
        :param run_at: not before: a datetime or its text (UTC when naive, as Odoo's datetimes are)
        :param str time_zone: where the clock hangs that naive moments were read from, for example the user's ``tz``
        :param delay: not before so many seconds (or a timedelta) from now
        :param expires_at: it ends as cancelled when it has not started by then
        :param expires_in: the same, in seconds (or a timedelta) from when it is due
        :param int split: one job for each so many records
        """
        return Enqueuer(self, options)

    def _sidestream_jobs(self):
        """Return the jobs that are about these records, newest first."""
        return self.env["sidestream.job"]._of_records(self)

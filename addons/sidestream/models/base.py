from odoo import api, models

from ..enqueue import Enqueuer


class Base(models.AbstractModel):
    _inherit = "base"

    @api.private
    def enqueue(self, **options):
        """Return an enqueuer of this recordset's actions: ``records.enqueue().action(*args)``.

        The job exists if, and only if, this transaction commits. It runs as the current user, in the current company,
        language and time zone, and never as superuser unless the action declares it. Calling the action returns the
        jobs.

        :param str queue: the queue; default: the action's
        :param str key: jobs with the same ordering key run one at a time, in order; default: the action's
        :param int priority: 0 (first) to 9 (last) within the queue
        :param str group: the tenant for fair scheduling; default: ``company:<id>``
        :param str limit: the limit that applies, ``rule`` or ``rule:value``; default: the action's
        :param unique: what makes another job a duplicate: a text or a :class:`sidestream.Unique`, with
            ``unique_until`` ("started", "done", "window"), ``unique_for`` (seconds) and ``on_conflict`` ("return",
            "replace", "newest")
        :param run_at: the earliest start: a datetime or its text (UTC when naive, as Odoo's datetimes are)
        :param str time_zone: the time zone of naive datetimes, for example the user's ``tz``
        :param delay: the earliest start in seconds (or a timedelta) from now
        :param expires_at: the job is cancelled if it has not started by then
        :param expires_in: the same, in seconds (or a timedelta) after the earliest start
        :param int split: create one job for each group of so many records
        """
        return Enqueuer(self, options)

    def _sidestream_jobs(self):
        """Return the jobs about these records, newest first."""
        return self.env["sidestream.job"]._of_records(self)

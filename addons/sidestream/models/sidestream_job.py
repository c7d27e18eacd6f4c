import logging
import threading

from sidestream import SidestreamError, cancel, retry, run_now, sync_to_broker, why_waiting

from odoo import api, fields, models
from odoo.exceptions import AccessError, UserError
from odoo.fields import Domain
from odoo.tools import SQL

from ..enqueuing import forget, settings_of
from .job_state import JobState
from .redacted import RedactedArguments, RedactedText

_logger = logging.getLogger(__name__)

LOOSE = {"user_id": "res_users", "requested_by": "res_users", "company_id": "res_company"}
"""What a job names without a foreign key: a deleted user's jobs stay, and are shown with nobody."""
MOST = 1000
"""How many jobs of records are found at once."""


def _tell(database, job_ids, waiting):
    """Let Redis follow what was done to rows. Not needed for any promise: the workers look at the rows, too."""
    try:
        sync_to_broker(settings_of(database), job_ids, waiting=waiting)
    except Exception:
        _logger.exception("Redis was not told of what was done to jobs; workers find it in a few seconds.")


class SidestreamJob(models.Model):
    """The engine's job rows, for people: nothing is written here but what the buttons ask of the engine."""

    _name = "sidestream.job"
    _description = "Background Job"
    _table = "sidestream_job"
    _auto = False
    _log_access = False
    _order = "id desc"
    _rec_name = "action"

    action = fields.Char(string="Method", readonly=True, help="The model's method that runs.")
    queue = fields.Char(readonly=True)
    # Made of what the records hold, also of fields that whoever asked may not read.
    key = fields.Char(
        string="Order Key",
        readonly=True,
        groups="sidestream.group_manager",
        help="Jobs with the same key run one at a time, in order.",
    )
    state = JobState(
        [("pending", "Open"), ("done", "Done"), ("failed", "Failed"), ("cancelled", "Cancelled")], readonly=True
    )
    created_at = fields.Datetime(string="Requested", readonly=True)
    run_at = fields.Datetime(string="Not Before", readonly=True)
    expires_at = fields.Datetime(string="Expires", readonly=True, help="Cancelled if it has not started by then.")
    started_at = fields.Datetime(string="Started", readonly=True, help="When the run that succeeded began.")
    priority = fields.Integer(readonly=True, help="From 0, which is first, to 9.")
    group_name = fields.Char(string="Shares Fairly As", readonly=True, groups="sidestream.group_manager")
    limit_key = fields.Char(string="Counts Against", readonly=True, groups="sidestream.group_manager")
    ended_at = fields.Datetime(string="Ended", readonly=True)
    attempts = fields.Integer(string="Failed Attempts", readonly=True)
    forgiven = fields.Integer(string="Of Them Before Retry", readonly=True)
    crashes = fields.Integer(readonly=True)
    error = RedactedText(readonly=True)
    error_group = fields.Char(readonly=True, help="What the errors of several jobs share.")
    reason = fields.Char(string="Waiting For", readonly=True)
    payload = RedactedArguments(string="Arguments", readonly=True, groups="sidestream.group_manager")
    user_id = fields.Many2one("res.users", string="Runs As", readonly=True)
    requested_by = fields.Many2one(
        "res.users", readonly=True, help="Who asked for it, where that is not the user that it runs as."
    )
    company_id = fields.Many2one("res.company", readonly=True)
    attempt_ids = fields.One2many("sidestream.attempt", "job_id", string="What Happened", readonly=True)
    name = fields.Char(string="Job", compute="_compute_name", search="_search_name")
    status = fields.Char(compute="_compute_status", help="What the job does, waits for or failed with, in a few words.")
    records = fields.Char(string="About", compute="_compute_records", search="_search_records")
    duration = fields.Char(
        string="Took", compute="_compute_duration", help="From the request to the end, with all waiting."
    )

    def _register_hook(self):
        """Installed or upgraded, here or by another process: what was known of the tables may be another database's."""
        super()._register_hook()
        forget(self.env.cr.dbname)

    @api.model
    def _of_records(self, records):
        """Return the jobs that are about these records and that the user may see, the newest thousand first."""
        if not records.ids:
            return self.browse()
        links = SQL(
            "(SELECT job_id FROM sidestream_job_record WHERE model = %s AND record_id = ANY(%s))",
            records._name,
            records.ids,
        )
        return self.search(Domain("id", "in", links), limit=MOST)  # of those that the user may see

    def _on_failed(self):
        """Hook: the job has failed, and nothing runs it again unless a person retries it. Override it.

        Called at most once, as the superuser and in a transaction of its own, after the failure is committed.
        """

    # -- users and companies that were deleted -------------------------------------------------------------------

    def _fetch_query(self, query, fields):
        fetched = super(SidestreamJob, self.with_context(sidestream_loose=True))._fetch_query(query, fields)
        return fetched.with_env(self.env)

    def _read_group_groupby(self, alias, groupby_spec, query):
        loose = self.with_context(sidestream_loose=True)
        return super(SidestreamJob, loose)._read_group_groupby(alias, groupby_spec, query)

    def _field_to_sql(self, alias, field_expr, query=None):
        found = super()._field_to_sql(alias, field_expr, query)
        if field_expr in LOOSE and self.env.context.get("sidestream_loose"):
            return SQL("(SELECT o.id FROM %s o WHERE o.id = %s)", SQL.identifier(LOOSE[field_expr]), found)
        return found

    # -- what nobody may do --------------------------------------------------------------------------------------
    # pylint: disable=method-required-super,no-raise-unlink

    @api.model_create_multi
    def create(self, vals_list):
        raise self._refusal()

    def write(self, vals):
        raise self._refusal()

    def copy(self, default=None):
        raise self._refusal()

    @api.model
    def load(self, fields, data):
        raise self._refusal()

    def unlink(self):
        raise self._refusal()

    def _refusal(self):
        return UserError(
            self.env._(
                "Background jobs are made by the actions that need them; they cannot be created, copied, imported, "
                "edited or deleted by hand. Use Retry, Cancel and Run now."
            )
        )

    # -- actions -------------------------------------------------------------------------------------------------

    def action_retry(self):
        """Open failed or cancelled jobs again; one that was cancelled before its time keeps that time."""
        answer = self._ask(retry, waiting=True)
        scheduled = [job.id for job in self if job.state == "pending" and job._is_early()]
        if answer is not True or not scheduled:
            return answer
        message = self.env._(
            "Jobs that keep the time for which they were scheduled: %s. Use Run Now to start them at once.",
            len(scheduled),
        )
        return self._notification(message, reload=True)

    def action_cancel(self):
        """Cancel pending jobs; one that runs is stopped by its worker within seconds."""
        return self._ask(cancel, waiting=False)

    def action_run_now(self):
        """Let scheduled and retrying jobs run at once."""
        return self._ask(run_now, waiting=True)

    def action_why(self):
        """Say why the job waits, or how it ended: rules, limits, other jobs and workers are looked at."""
        self.ensure_one()
        self.check_access("read")
        if not self.env.user.has_group("sidestream.group_manager"):
            raise AccessError(self.env._("The answer names other jobs, so it is for managers of background jobs."))
        try:
            sentence = why_waiting(settings_of(self.env.cr.dbname), self.id)
        except SidestreamError as error:
            raise UserError(str(error)) from error
        return self._notification(sentence or self.env._("This job is not there any more."), sticky=True)

    def action_open_records(self):
        """Show the record, or the records, that the job is about."""
        self.ensure_one()
        self.check_access("read")
        self.env.cr.execute(
            "SELECT model, array_agg(record_id ORDER BY record_id) FROM sidestream_job_record WHERE job_id = %s "
            "GROUP BY model",
            [self.id],
        )
        for model, ids in self.env.cr.fetchall():
            if model in self.env and self.env[model].browse(ids).exists():
                one = {"res_id": ids[0], "view_mode": "form"}
                many = {"domain": [("id", "in", ids)], "view_mode": "list,form"}
                action = {"type": "ir.actions.act_window", "res_model": model, "name": self.name}
                action |= one if len(ids) == 1 else many
                return action | {"views": [(False, mode) for mode in action["view_mode"].split(",")]}
        raise UserError(self.env._("The records that this job was about are gone."))

    def _ask(self, request, *, waiting):
        self._check_may_act()
        done, running = [], 0
        for job in self:
            written = request(self.env.cr._obj, job.id)
            if written.applied:
                done.append(job.id)
            elif written.locked:
                running += 1
        self.invalidate_recordset()
        if done:
            self._tell_after_commit(done, waiting)
        if len(done) == len(self):
            return True
        if running and request is cancel:
            message = self.env._(
                "Jobs that run now were told: %s. Each ends within seconds, or is done before.", running
            )
        elif running:
            message = self.env._("Jobs that run already: %s.", running)
        elif done:
            message = self.env._("%(done)s of %(all)s jobs; the others are in a state that does not allow it.",
                                 done=len(done), all=len(self))  # fmt: skip
        else:
            message = self.env._("Nothing to do: the state of these jobs does not allow it.")
        return self._notification(message, reload=True)

    @staticmethod
    def _notification(message, *, sticky=False, reload=False):
        params = {"message": message, "type": "info", "sticky": sticky}
        if reload:
            params["next"] = {"type": "ir.actions.client", "tag": "soft_reload"}
        return {"type": "ir.actions.client", "tag": "display_notification", "params": params}

    def _tell_after_commit(self, job_ids, waiting):
        database = self.env.cr.dbname

        @self.env.cr.postcommit.add
        def tell():  # in a thread: a Redis that does not answer is nothing that a person should wait for
            threading.Thread(target=_tell, args=(database, job_ids, waiting), daemon=True).start()

    def _check_may_act(self):
        self.check_access("read")
        if self.env.su or self.env.user.has_group("sidestream.group_manager"):
            return
        if any(self.env.user not in job.user_id | job.requested_by for job in self):
            raise AccessError(self.env._("You may retry, cancel or run only your own background jobs."))

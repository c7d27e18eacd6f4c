import logging
import threading
from datetime import UTC, datetime, timedelta

from sidestream import cancel, declared, hasten, retry, run_now

from odoo import api, fields, models
from odoo.exceptions import AccessError, UserError
from odoo.fields import Domain
from odoo.tools import SQL, format_datetime

from ..action import labels
from ..enqueuing import settings_of

_logger = logging.getLogger(__name__)

NAMED = 3
"""How many records of a job are named in a list."""
HASTENED = 100
"""Of how many jobs that a button was pressed for Redis hears at once; of the others in a few seconds."""
EARLY = timedelta(seconds=1)
"""How long before its time a job may begin, because clocks differ."""
LOOSE = {"user_id": "res_users", "company_id": "res_company"}
"""What a job names without a foreign key: a deleted user's jobs stay, and are shown with nobody."""


def _tell(database, job_ids, waiting):
    """Let Redis follow what was done to rows. Not needed for any promise: the workers look at the rows, too."""
    try:
        settings = settings_of(database)
        for job_id in job_ids[:HASTENED]:
            if not hasten(settings, job_id, waiting=waiting):
                return
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
    key = fields.Char(string="Order Key", readonly=True, help="Jobs with the same key run one at a time, in order.")
    state = fields.Selection(
        [("open", "Open"), ("done", "Done"), ("dead", "Failed"), ("cancelled", "Cancelled")], readonly=True
    )
    created_at = fields.Datetime(string="Requested", readonly=True)
    run_at = fields.Datetime(string="Not Before", readonly=True)
    ended_at = fields.Datetime(string="Ended", readonly=True)
    attempts = fields.Integer(string="Failed Attempts", readonly=True)
    forgiven = fields.Integer(string="Of Them Before Retry", readonly=True)
    crashes = fields.Integer(readonly=True)
    error = fields.Text(readonly=True)
    reason = fields.Char(string="Waiting For", readonly=True)
    payload = fields.Text(string="Arguments", readonly=True, groups="sidestream.group_manager")
    user_id = fields.Many2one("res.users", string="Runs As", readonly=True)
    company_id = fields.Many2one("res.company", readonly=True)
    attempt_ids = fields.One2many("sidestream.attempt", "job_id", string="What Happened", readonly=True)
    name = fields.Char(string="Job", compute="_compute_name", search="_search_name")
    status = fields.Char(compute="_compute_status", help="What the job does, waits for or failed with, in a few words.")
    records = fields.Char(string="About", compute="_compute_records")
    duration = fields.Char(
        string="Took", compute="_compute_duration", help="From the request to the end, with all waiting."
    )

    @api.depends("action")
    def _compute_display_name(self):
        for job in self:
            job.display_name = self.env._("%(name)s (job %(id)s)", name=job.name, id=job.id)

    @api.depends("action")
    def _compute_name(self):
        for job in self:
            model, _, method = (job.action or "").rpartition(".")
            action = declared(type(self.env[model]), method) if model in self.env else None
            words = method.strip("_").replace("_", " ")
            job.name = (action and action.label) or words[:1].upper() + words[1:]

    def _search_name(self, operator, value):
        if operator not in ("ilike", "=ilike", "like", "=like", "=") or not isinstance(value, str):
            return NotImplemented
        wanted = value.strip("%").casefold()
        methods = [name for name, texts in labels.items() if any(wanted in text.casefold() for text in texts)]
        words = wanted.replace(" ", "_")
        return Domain.OR(
            [Domain("action", "ilike", words)] + [Domain("action", "=like", f"%.{name}") for name in methods]
        )

    @api.depends("state", "run_at", "attempts", "forgiven", "reason", "error")
    def _compute_status(self):
        soon = datetime.now(UTC).replace(tzinfo=None) + EARLY
        for job in self:
            failed = job.attempts > job.forgiven
            if job.state != "open":
                job.status = job._what_went_wrong() if job.state in ("dead", "cancelled") else False
            elif job.run_at and job.run_at > soon:
                at = format_datetime(self.env, job.run_at, dt_format="short")
                job.status = (
                    self.env._("Tries again %(at)s: %(error)s", at=at, error=job._what_went_wrong())
                    if failed
                    else self.env._("Scheduled for %s", at)
                )
            else:
                job.status = job.reason or self.env._("Waiting or running")

    def _what_went_wrong(self):
        """Return the error as the user's own dialog would have shown it, without the exception's name."""
        kind, colon, text = (self.error or "").partition(": ")
        return text if colon and kind.isidentifier() else kind + colon + text

    @api.depends("created_at", "ended_at")
    def _compute_duration(self):
        for job in self:
            job.duration = self._spelled(job.ended_at - job.created_at) if job.ended_at and job.created_at else False

    def _spelled(self, span):
        seconds = max(0.0, span.total_seconds())
        if seconds < 60:
            return self.env._("%s s", f"{seconds:.{0 if seconds >= 10 else 1}f}")
        minutes = int(seconds // 60)
        if minutes < 60:
            return self.env._("%(minutes)s min %(seconds)s s", minutes=minutes, seconds=int(seconds % 60))
        if minutes < 24 * 60:
            return self.env._("%(hours)s h %(minutes)s min", hours=minutes // 60, minutes=minutes % 60)
        return self.env._("%(days)s d %(hours)s h", days=minutes // 1440, hours=minutes // 60 % 24)

    def _compute_records(self):
        links = self._links()
        wanted = {}
        for found in links.values():
            for model, (first, _count) in found.items():
                wanted.setdefault(model, set()).update(first)
        names = {model: self._readable_names(model, sorted(ids)) for model, ids in wanted.items()}
        for job in self:
            shown = []
            for model, (first, count) in links.get(job.id, {}).items():
                shown += [names[model][one] for one in first if one in names[model]]
                if count > NAMED:
                    shown.append(self.env._("and %s more", count - NAMED))
            job.records = ", ".join(shown)

    @api.model
    def _readable_names(self, model, ids):
        """Return the names of those records that are still there and that the user may read."""
        if model not in self.env or not self.env[model].has_access("read"):
            return {}
        found = self.env[model].browse(ids).exists()._filtered_access("read")
        return {record.id: record.display_name for record in found}

    def _links(self):
        """Return for each job {model: (the first ids, how many)}."""
        if not self.ids:
            return {}
        self.env.cr.execute(
            "SELECT job_id, model, (array_agg(record_id ORDER BY record_id))[:%s], count(*) FROM sidestream_job_record "
            "WHERE job_id = ANY(%s) GROUP BY job_id, model",
            [NAMED, self.ids],
        )
        found = {}
        for job_id, model, first, count in self.env.cr.fetchall():
            found.setdefault(job_id, {})[model] = (first, count)
        return found

    @api.model
    def _of_records(self, records):
        """Return the jobs that are about these records and that the user may see, newest first."""
        if not records.ids:
            return self.browse()
        self.env.cr.execute(
            "SELECT DISTINCT job_id FROM sidestream_job_record WHERE model = %s AND record_id = ANY(%s) "
            "ORDER BY job_id DESC LIMIT 1000",
            [records._name, records.ids],
        )
        return self.search([("id", "in", [row[0] for row in self.env.cr.fetchall()])])

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
        """Open failed or cancelled jobs again."""
        return self._ask(retry, waiting=True)

    def action_cancel(self):
        """Cancel open jobs; one that runs is stopped by its worker within seconds."""
        return self._ask(cancel, waiting=False)

    def action_run_now(self):
        """Let scheduled and retrying jobs run at once."""
        return self._ask(run_now, waiting=True)

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
            if written.ours:
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
        return {
            "type": "ir.actions.client",
            "tag": "display_notification",
            "params": {"message": message, "type": "info", "next": {"type": "ir.actions.client", "tag": "soft_reload"}},
        }

    def _tell_after_commit(self, job_ids, waiting):
        database = self.env.cr.dbname

        @self.env.cr.postcommit.add
        def tell():  # in a thread: a Redis that does not answer is nothing that a person should wait for
            threading.Thread(target=_tell, args=(database, job_ids, waiting), daemon=True).start()

    def _check_may_act(self):
        self.check_access("read")
        if self.env.su or self.env.user.has_group("sidestream.group_manager"):
            return
        if any(job.user_id != self.env.user for job in self):
            raise AccessError(self.env._("You may retry, cancel or run only your own background jobs."))

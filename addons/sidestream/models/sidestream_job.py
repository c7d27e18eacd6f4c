import inspect
import logging
import threading
from datetime import UTC, datetime, timedelta

from sidestream import (
    SidestreamError,
    cancel,
    declared,
    install,
    pending_statuses,
    retry,
    run_now,
    sync_to_broker,
    upgrade,
    why_waiting,
)
from sidestream.job.reason import ReasonCode

from odoo import api, fields, models
from odoo.exceptions import AccessError, UserError
from odoo.fields import Domain
from odoo.tools import SQL

from ..action import labels
from ..enqueue import forget, settings_of
from ..fields import Duration, JobState, RedactedArguments, RedactedText
from ..messages import diagnosis_message, error_message, format_span, reason_message, status_message

_logger = logging.getLogger(__name__)

DELETABLE = {"user_id": "res_users", "requested_by": "res_users", "company_id": "res_company"}
"""Columns without a foreign key: the jobs of a deleted user remain, and are shown without a user."""
MAX_JOBS_OF_RECORDS = 1000
RECORDS_SHOWN = 3
"""How many records of a job are named in a list."""
EARLY = timedelta(seconds=1)
"""How long before its time a job may start, because clocks differ."""
# A skip scan: one index lookup per model, however many links there are.
DISTINCT_MODELS = """
    WITH RECURSIVE found (model) AS (
        (SELECT model FROM sidestream_job_record ORDER BY model LIMIT 1)
        UNION ALL
        SELECT (SELECT r.model FROM sidestream_job_record r WHERE r.model > found.model ORDER BY r.model LIMIT 1)
        FROM found WHERE found.model IS NOT NULL)
    SELECT model FROM found WHERE model IS NOT NULL"""
DISTINCT_ACTIONS = """
    WITH RECURSIVE found (action) AS (
        (SELECT action FROM sidestream_job ORDER BY action LIMIT 1)
        UNION ALL
        SELECT (SELECT j.action FROM sidestream_job j WHERE j.action > found.action ORDER BY j.action LIMIT 1)
        FROM found WHERE found.action IS NOT NULL)
    SELECT action FROM found WHERE action IS NOT NULL"""


def _sync(database, job_ids, waiting):
    """Send a person's request to Redis now; otherwise workers find it in the rows in seconds."""
    try:
        sync_to_broker(settings_of(database), job_ids, waiting=waiting)
    except Exception:
        _logger.exception("Redis did not learn of changed jobs; workers find the changes within seconds.")


def _is_replica(cr):
    """Whether a read-only cursor is at a replica (``db_replica_host``) and not at the primary."""
    if not cr.readonly:
        return False
    cr.execute("SELECT pg_is_in_recovery()")
    return cr.fetchone()[0]


def _now():
    return datetime.now(UTC).replace(tzinfo=None)


class SidestreamJob(models.Model):
    """The engine's job rows, read-only: the buttons ask the engine to change them."""

    _name = "sidestream.job"
    _description = "Background Job"
    _table = "sidestream_job"
    _auto = False
    _log_access = False
    _order = "id desc"
    _rec_name = "action"

    action = fields.Char(string="Method", readonly=True, help="The method of a model that the job calls.")
    queue = fields.Char(readonly=True)
    # Built from the values of records, which may include fields that the user cannot read.
    key = fields.Char(
        string="Ordering Key",
        readonly=True,
        groups="sidestream.group_sidestream_manager",
        help="Jobs with the same key run one at a time, in order.",
    )
    state = JobState(
        [("pending", "Pending"), ("done", "Done"), ("failed", "Failed"), ("cancelled", "Cancelled")], readonly=True
    )
    created_at = fields.Datetime(string="Requested On", readonly=True)
    run_at = fields.Datetime(string="Scheduled For", readonly=True)
    expires_at = fields.Datetime(
        string="Expiration", readonly=True, help="The job is cancelled if it has not started by this time."
    )
    started_at = fields.Datetime(string="Started On", readonly=True, help="When the successful attempt started.")
    ended_at = fields.Datetime(string="Ended On", readonly=True)
    duration = Duration(start="created_at", end="ended_at", help="Time from the request to the end, waiting included.")
    priority = fields.Integer(readonly=True, help="From 0 (first) to 9 (last), within the queue.")
    group_name = fields.Char(string="Fairness Group", readonly=True, groups="sidestream.group_sidestream_manager")
    limit_key = fields.Char(readonly=True, groups="sidestream.group_sidestream_manager")
    attempts = fields.Integer(string="Failed Attempts", readonly=True)
    forgiven = fields.Integer(string="Failed Attempts Before Last Retry", readonly=True)
    crashes = fields.Integer(readonly=True, help="How many attempts ended with the death of their process.")
    error = RedactedText(readonly=True)
    error_group = fields.Char(readonly=True, help="Jobs that failed with similar errors have the same error group.")
    reason = fields.Char(readonly=True)
    payload = RedactedArguments(string="Arguments", readonly=True, groups="sidestream.group_sidestream_manager")
    user_id = fields.Many2one("res.users", readonly=True, help="The job runs as this user.")
    requested_by = fields.Many2one(
        "res.users", readonly=True, help="Who requested the job, if it runs as another user."
    )
    company_id = fields.Many2one("res.company", readonly=True)
    attempt_ids = fields.One2many("sidestream.attempt", "job_id", string="History", readonly=True)
    name = fields.Char(string="Job", compute="_compute_name", search="_search_name")
    records = fields.Char(string="Record", compute="_compute_records", search="_search_records")
    status = fields.Selection(
        [
            ("scheduled", "Scheduled"),
            ("waiting", "Waiting"),
            ("running", "Running"),
            ("retrying", "Retrying"),
            ("blocked", "Blocked"),
            ("limited", "Limited"),
            ("paused", "Paused"),
            ("unrouted", "Unrouted"),
            ("done", "Done"),
            ("failed", "Failed"),
            ("cancelled", "Cancelled"),
        ],
        compute="_compute_status",
    )
    message = fields.Char(
        string="Details", compute="_compute_status", help="What the job waits for, or why it failed or was cancelled."
    )

    # -- what people read ------------------------------------------------------------------------------------------

    @api.depends("action")
    @api.depends_context("lang")
    def _compute_display_name(self):
        for job in self:
            job.display_name = self.env._("%(name)s (job %(id)s)", name=job.name, id=job.id)

    @api.depends("action")
    @api.depends_context("lang")
    def _compute_name(self):
        for job in self:
            model, _, method = (job.action or "").rpartition(".")
            action = declared(type(self.env[model]), method) if model in self.env else None
            words = method.strip("_").replace("_", " ")
            job.name = (action and self._translated(action.label)) or words[:1].upper() + words[1:]

    @api.depends_context("lang", "allowed_company_ids")
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
                if count > RECORDS_SHOWN:
                    shown.append(self.env._("and %s more", count - RECORDS_SHOWN))
            job.records = ", ".join(shown)

    @api.depends("state", "run_at", "attempts", "forgiven", "reason", "error")
    @api.depends_context("lang")
    def _compute_status(self):
        pending, since = self._pending_statuses()
        for job in self:
            job.status = pending.get(job.id, "waiting" if job.state == "pending" else job.state)
            job.message = job._message_for(since.get(job.id))

    def _pending_statuses(self):
        """Return {id: status} of the pending jobs, and {id: start} of those with a recorded start."""
        ids = [job.id for job in self if job.state == "pending"]
        if not ids or not _is_replica(self.env.cr):
            return self._read_statuses(self.env.cr, ids)
        with self.env.registry.cursor() as cr:  # a replica does not have the locks of running jobs
            return self._read_statuses(cr, ids)

    @api.model
    def _read_statuses(self, cr, ids):
        found = {job_id: status.value for job_id, status in pending_statuses(cr._obj, ids).items()}
        running = [job_id for job_id, status in found.items() if status == "running"]
        if not running:
            return found, {}
        cr.execute(
            "SELECT DISTINCT ON (job_id) job_id, event, at FROM sidestream_attempt WHERE job_id = ANY(%s) "
            "ORDER BY job_id, id DESC",
            [running],
        )
        return found, {job_id: at for job_id, event, at in cr.fetchall() if event == "started"}

    def _message_for(self, since):
        """Return the details of the job's status, with relative times."""
        error = error_message(self.error) if self.attempts > self.forgiven else False
        if self.status == "failed":
            return error_message(self.error)
        if self.status == "running":
            return since and self.env._("Running for %s", format_span(self.env, _now() - since))
        if self.status == "scheduled":
            return self.env._("Starts in %s", format_span(self.env, self.run_at - _now()))
        if self.status == "retrying":
            wait = format_span(self.env, self.run_at - _now())
            return self.env._("Retries in %(wait)s: %(error)s", wait=wait, error=error)
        if self.status in ("blocked", "limited", "unrouted"):
            return status_message(self.env, self.status)
        if self.status == "paused" and self.reason != ReasonCode.UPGRADING:
            return self.env._("Its queue, action or group is paused")
        if self.status == "done":
            return False
        return reason_message(self.env, self.reason) or (error and self.env._("Last error: %s", error))

    def _is_early(self):
        """Whether the job's time has not come."""
        return bool(self.run_at) and self.run_at > _now() + EARLY

    def _parameter_names(self):
        """Return the parameter names of the job's positional arguments, its records first."""
        model, _, method = (self.action or "").rpartition(".")
        function = getattr(type(self.env[model]), method, None) if model in self.env else None
        return list(inspect.signature(function).parameters) if callable(function) else []

    def _translated(self, label):
        return label if label is None or isinstance(label, str) else self.env._(label)

    # -- searches --------------------------------------------------------------------------------------------------

    def _search_name(self, operator, value):
        """Find the actions with such a name: there are few, and an index finds the jobs of each."""
        if operator == "in":
            return self._of_actions(lambda action: any(self._is_named(action, name) for name in value))
        if operator not in ("ilike", "=ilike", "like", "=like") or not isinstance(value, str):
            return NotImplemented
        wanted = value.strip("%").casefold()
        words = wanted.replace(" ", "_")

        def fits(action):
            texts = map(self._translated, labels.get(action.rpartition(".")[2], ()))
            return words in action.casefold() or any(wanted in text.casefold() for text in texts)

        return self._of_actions(fits)

    def _is_named(self, action, name):
        """Whether the jobs of ``action`` have exactly this name; every job has a name."""
        if not isinstance(name, str):
            return False
        method, words = action.rpartition(".")[2], name[:1].lower() + name[1:].replace(" ", "_")
        if name in map(self._translated, labels.get(method, ())):
            return True
        return words not in labels and method in (words, f"_{words}")

    def _of_actions(self, wanted):
        """Return the domain of the jobs whose actions are ``wanted``."""
        self.env.cr.execute(DISTINCT_ACTIONS)
        return Domain("action", "in", [action for (action,) in self.env.cr.fetchall() if wanted(action)])

    def _search_records(self, operator, value):
        """Find the jobs of records with such a name, among the models that the user may read."""
        if operator not in ("in", "ilike", "like", "=ilike", "=like"):
            return NotImplemented
        values = value if operator == "in" else [value]
        names = [one for one in values if isinstance(one, str)]
        links = []
        self.env.cr.execute(DISTINCT_MODELS)
        for (model,) in self.env.cr.fetchall() if names else ():
            if model in self.env and self.env[model].has_access("read"):
                query = self._in_all_companies(model)._search(
                    Domain("display_name", operator, names if operator == "in" else value)
                )
                linked = SQL(
                    "SELECT job_id FROM sidestream_job_record WHERE model = %s AND record_id IN %s",
                    model,
                    query.subselect(),
                )
                # If there are none, PostgreSQL would check every job for them.
                self.env.cr.execute(SQL("SELECT EXISTS (%s)", linked))
                if self.env.cr.fetchone()[0]:
                    links.append(linked)
        found = []
        if links:
            found.append(SQL("EXISTS (SELECT FROM (%s) link WHERE link.job_id = ", SQL(" UNION ALL ").join(links)))
        if False in values:
            found.append(SQL("NOT EXISTS (SELECT FROM sidestream_job_record link WHERE link.job_id = "))

        def to_sql(jobs, alias, query):
            # PostgreSQL turns EXISTS and NOT EXISTS into joins, but a NOT IN over many links would not end.
            conditions = [SQL("%s%s)", one, SQL.identifier(alias, "id")) for one in found]
            return SQL("(%s)", SQL(" OR ").join(conditions)) if len(conditions) > 1 else conditions[0]

        return Domain.custom(to_sql=to_sql) if found else Domain.FALSE

    @api.model
    def _of_records(self, records):
        """Return up to 1,000 of the newest jobs of these records that the user may see."""
        if not records.ids:
            return self.browse()
        links = SQL(
            "(SELECT job_id FROM sidestream_job_record WHERE model = %s AND record_id = ANY(%s))",
            records._name,
            records.ids,
        )
        return self.search(Domain("id", "in", links), limit=MAX_JOBS_OF_RECORDS)

    @api.model
    def _readable_names(self, model, ids):
        """Return the names of those records that exist and that the user may read."""
        if model not in self.env or not self.env[model].has_access("read"):
            return {}
        found = self._in_all_companies(model).browse(ids).exists()._filtered_access("read")
        return {record.id: record.display_name for record in found}

    @api.model
    def _in_all_companies(self, model):
        """Return the model in all of the user's companies, not only in the selected ones."""
        companies = dict.fromkeys([*self.env.companies.ids, *self.env.user._get_company_ids()])
        return self.env[model].with_context(allowed_company_ids=list(companies))

    def _links(self):
        """Return for each job {model: (the first ids, how many)}."""
        if not self.ids:
            return {}
        self.env.cr.execute(
            "SELECT job_id, model, (array_agg(record_id ORDER BY record_id))[:%s], count(*) FROM sidestream_job_record "
            "WHERE job_id = ANY(%s) GROUP BY job_id, model",
            [RECORDS_SHOWN, self.ids],
        )
        found = {}
        for job_id, model, first, count in self.env.cr.fetchall():
            found.setdefault(job_id, {})[model] = (first, count)
        return found

    # Deleted users and companies are read as empty instead of raising an error.

    def _fetch_query(self, query, fields):
        fetched = super(SidestreamJob, self.with_context(sidestream_loose=True))._fetch_query(query, fields)
        return fetched.with_env(self.env)

    def _read_group_groupby(self, alias, groupby_spec, query):
        loose = self.with_context(sidestream_loose=True)
        return super(SidestreamJob, loose)._read_group_groupby(alias, groupby_spec, query)

    def _field_to_sql(self, alias, field_expr, query=None):
        found = super()._field_to_sql(alias, field_expr, query)
        if field_expr in DELETABLE and self.env.context.get("sidestream_loose"):
            return SQL("(SELECT o.id FROM %s o WHERE o.id = %s)", SQL.identifier(DELETABLE[field_expr]), found)
        return found

    # -- CRUD: users cannot create, write or delete rows -----------------------------------------------------------
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
                "Actions create background jobs. You cannot create, copy, import, edit or delete them by hand. "
                "Use Retry, Cancel and Run Now."
            )
        )

    # -- buttons ---------------------------------------------------------------------------------------------------

    def action_retry(self):
        """Retry failed or cancelled jobs; one that was cancelled before its time keeps that time."""
        answer = self._request(retry, waiting=True)
        scheduled = [job.id for job in self if job.state == "pending" and job._is_early()]
        if answer is not True or not scheduled:
            return answer
        message = self.env._(
            "%s jobs keep the time for which they were scheduled. Use Run Now to start them immediately.",
            len(scheduled),
        )
        return self._notification(message, reload=True)

    def action_cancel(self):
        """Cancel pending jobs; a worker stops running ones within seconds."""
        return self._request(cancel, waiting=False)

    def action_run_now(self):
        """Start scheduled and retrying jobs without waiting for their time."""
        return self._request(run_now, waiting=True)

    def action_why(self):
        """Explain in one sentence why the job waits, or how it ended."""
        self.ensure_one()
        self.check_access("read")
        if not self.env.user.has_group("sidestream.group_sidestream_manager"):
            raise AccessError(self.env._("The answer names other jobs, so only managers of background jobs see it."))
        try:
            diagnosis = why_waiting(settings_of(self.env.cr.dbname), self.id)
        except SidestreamError as error:
            raise UserError(str(error)) from error
        message = diagnosis_message(self.env, diagnosis) if diagnosis else self.env._("This job no longer exists.")
        return self._notification(message, sticky=True)

    def action_open_records(self):
        """Open the record, or the records, that the job is about."""
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
        raise UserError(self.env._("The records of this job no longer exist."))

    def _request(self, request, *, waiting):
        self._check_may_act()
        done, running = [], 0
        for job in self:
            result = request(self.env.cr._obj, job.id)
            if result.applied:
                done.append(job.id)
            elif result.locked:
                running += 1
        self.invalidate_recordset()
        if done:
            self._sync_after_commit(done, waiting)
        if len(done) == len(self):
            return True
        if running and request is cancel:
            message = self.env._(
                "Cancellation requested for %s running jobs. They stop within seconds unless they finish first.",
                running,
            )
        elif running:
            message = self.env._("%s jobs are already running.", running)
        else:
            message = self.env._("%(done)s of %(all)s jobs changed. The state of the others does not allow it.",
                                 done=len(done), all=len(self))  # fmt: skip
        return self._notification(message, reload=True)

    @staticmethod
    def _notification(message, *, sticky=False, reload=False):
        params = {"message": message, "type": "info", "sticky": sticky}
        if reload:
            params["next"] = {"type": "ir.actions.client", "tag": "soft_reload"}
        return {"type": "ir.actions.client", "tag": "display_notification", "params": params}

    def _sync_after_commit(self, job_ids, waiting):
        database = self.env.cr.dbname

        @self.env.cr.postcommit.add
        def sync():  # in a thread, so that a Redis that does not answer delays no request
            threading.Thread(target=_sync, args=(database, job_ids, waiting), daemon=True).start()

    def _check_may_act(self):
        self.check_access("read")
        if self.env.su or self.env.user.has_group("sidestream.group_sidestream_manager"):
            return
        if any(self.env.user not in job.user_id | job.requested_by for job in self):
            raise AccessError(self.env._("You can only retry, cancel or run your own background jobs."))

    # -- hooks -----------------------------------------------------------------------------------------------------

    def init(self):
        """Create or upgrade the engine's tables; Odoo calls this at ``-i`` and ``-u``."""
        install(self.env.cr._obj)
        upgrade(self.env.cr._obj)

    def _register_hook(self):
        """Read the tables' version again after an installation or upgrade by any process."""
        super()._register_hook()
        forget(self.env.cr.dbname)

import json

from odoo import SUPERUSER_ID, api, fields, models
from odoo.exceptions import AccessError, UserError

from sidestream import GiveUp, cancel, declared, hasten, identify, retry, run_now

from ..enqueuing import _settings
from ..values import decode


class SidestreamJob(models.Model):
    """The engine's job rows, for people: nothing is written here but what the buttons ask of the engine."""

    _name = "sidestream.job"
    _description = "Background Job"
    _table = "sidestream_job"
    _auto = False
    _log_access = False
    _order = "id desc"
    _rec_name = "action"

    action = fields.Char(readonly=True, help="The model's method that runs.")
    queue = fields.Char(readonly=True)
    key = fields.Char(string="Order Key", readonly=True, help="Jobs with the same key run one at a time, in order.")
    state = fields.Selection(
        [("open", "Open"), ("done", "Done"), ("dead", "Failed"), ("cancelled", "Cancelled")], readonly=True
    )
    created_at = fields.Datetime(string="Created", readonly=True)
    run_at = fields.Datetime(string="Not Before", readonly=True)
    ended_at = fields.Datetime(string="Ended", readonly=True)
    attempts = fields.Integer(string="Failed Attempts", readonly=True)
    forgiven = fields.Integer(readonly=True)
    crashes = fields.Integer(readonly=True)
    error = fields.Text(readonly=True)
    reason = fields.Char(string="Waiting For", readonly=True)
    payload = fields.Text(readonly=True)
    user_id = fields.Many2one("res.users", string="Runs As", readonly=True)
    company_id = fields.Many2one("res.company", readonly=True)
    attempt_ids = fields.One2many("sidestream.attempt", "job_id", string="What Happened", readonly=True)
    name = fields.Char(string="Job", compute="_compute_name")
    status = fields.Char(compute="_compute_status", help="What the job does or waits for, in a few words.")
    records = fields.Char(compute="_compute_records")

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

    @api.depends("state", "run_at", "attempts", "forgiven", "reason")
    def _compute_status(self):
        now = fields.Datetime.now()
        labels = dict(self._fields["state"]._description_selection(self.env))
        for job in self:
            if job.state != "open":
                job.status = labels.get(job.state, "")
            elif job.run_at and job.run_at > now:
                failed = job.attempts > job.forgiven
                job.status = self.env._("Retrying") if failed else self.env._("Scheduled")
            else:
                job.status = job.reason or self.env._("Waiting or running")

    def _compute_records(self):
        links = self._links()
        for job in self:
            names = []
            for model, ids in links.get(job.id, {}).items():
                if model in self.env and self.env[model].has_access("read"):
                    found = self.env[model].browse(ids[:3]).exists()._filtered_access("read")
                    names += found.mapped("display_name")
                if len(ids) > 3:
                    names.append(self.env._("and %s more", len(ids) - 3))
            job.records = ", ".join(names)

    def _links(self):
        if not self.ids:
            return {}
        self.env.cr.execute(
            "SELECT job_id, model, array_agg(record_id ORDER BY record_id) FROM sidestream_job_record "
            "WHERE job_id = ANY(%s) GROUP BY job_id, model",
            [self.ids],
        )
        found = {}
        for job_id, model, ids in self.env.cr.fetchall():
            found.setdefault(job_id, {})[model] = ids
        return found

    @api.model
    def _of_records(self, records):
        """Return the jobs that are about these records, newest first: one lookup in an index."""
        if not records.ids:
            return self.browse()
        self.env.cr.execute(
            "SELECT DISTINCT job_id FROM sidestream_job_record WHERE model = %s AND record_id = ANY(%s) "
            "ORDER BY job_id DESC LIMIT 1000",
            [records._name, records.ids],
        )
        return self.browse([row[0] for row in self.env.cr.fetchall()])

    # -- what nobody may do --------------------------------------------------------------------------------------

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

    def _ask(self, request, *, waiting):
        self._check_may_act()
        done, late = [], 0
        for job in self:
            written = request(self.env.cr._obj, job.id)
            if written.ours:
                done.append(job.id)
            elif written.locked:
                late += 1
        self.invalidate_recordset()
        if done:
            database = self.env.cr.dbname

            @self.env.cr.postcommit.add
            def tell():
                settings = _settings(database)
                for job_id in done:
                    hasten(settings, job_id, waiting=waiting)

        if len(done) == len(self):
            return True
        if late:
            message = self.env._("%s running jobs were told; each ends within seconds, or is done before.", late)
        else:
            message = self.env._("Nothing to do: the state of these jobs changed meanwhile.")
        return {
            "type": "ir.actions.client",
            "tag": "display_notification",
            "params": {"message": message, "type": "info", "next": {"type": "ir.actions.client", "tag": "soft_reload"}},
        }

    def _check_may_act(self):
        self.check_access("read")
        user = self.env.user
        if self.env.su or user.has_group("sidestream.group_manager"):
            return
        if any(job.user_id != user for job in self):
            raise AccessError(self.env._("You may retry, cancel or run only your own background jobs."))

    # -- running -------------------------------------------------------------------------------------------------

    @api.model
    def _sidestream_call(self, name, args, kwargs, *, job_id, user_id, context, attempt):
        """Call the action as its job says; the worker's transaction is open. Returns what the method returns."""
        model, _, method = name.rpartition(".")
        env = self._sidestream_env(user_id, json.loads(context or "{}"), job_id, attempt)
        if model not in env:
            raise GiveUp(f"The model {model!r} is gone: the module that had it was uninstalled.")
        ids, *rest = args
        records = env[model].browse(ids)
        if ids and not records.exists():
            raise GiveUp(
                self.env._(
                    "The records of this job were deleted before it ran: %(model)s %(ids)s. Nothing was done.",
                    model=env["ir.model"].sudo()._get(model).name or model,
                    ids=", ".join(str(one) for one in ids[:5]),
                )
            )
        arguments = [decode(env, one) for one in rest]
        named = {key: decode(env, one) for key, one in kwargs.items()}
        result = getattr(records.exists() if ids else records, method)(*arguments, **named)
        env.flush_all()
        return result

    @api.model
    def _sidestream_env(self, user_id, context, job_id, attempt):
        user = self.env["res.users"].browse(user_id or SUPERUSER_ID).exists()
        if not user:
            raise GiveUp(self.env._("The user that this job runs as (id %s) was deleted.", user_id))
        if not user.active and user.id != SUPERUSER_ID and not user._is_public():
            raise GiveUp(
                self.env._(
                    "%s is archived and runs nothing any more. Unarchive the user, or do it as somebody else, then Retry.",
                    user.name,
                )
            )
        allowed = context.get("allowed_company_ids")
        if allowed and user.id != SUPERUSER_ID:
            missing = self.env["res.company"].browse(set(allowed) - set(user.company_ids.ids)).exists()
            if missing:
                raise GiveUp(
                    self.env._(
                        "%(user)s may no longer work in %(companies)s. Give access again, then Retry.",
                        user=user.name,
                        companies=", ".join(missing.mapped("name")),
                    )
                )
        run_context = dict(context, sidestream_job_id=job_id, sidestream_attempt=attempt)
        self.env.transaction.default_env = env = self.env(user=user.id, context=run_context, su=user.id == SUPERUSER_ID)
        return env

    @api.model
    def _sidestream_idempotency_key(self, job_id, call=""):
        """Return what is sent with an external call: the same on every attempt of the job."""
        return f"{identify(self.env.cr._obj, allow_copy=True).uuid}:{job_id}:{call}"

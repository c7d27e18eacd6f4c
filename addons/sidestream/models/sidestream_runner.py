import json

from sidestream import GiveUp, identify

from odoo import SUPERUSER_ID, api, models
from odoo.exceptions import MissingError

from ..serialization import decode

UNREAD = object()


class SidestreamRunner(models.Model):
    """The methods that a worker calls to run a job, or when it has failed."""

    _inherit = "sidestream.job"

    @api.model
    def _sidestream_call(self, name, args, kwargs, *, job_id, user_id, context, attempt, user_active=UNREAD, gone=None):
        """Call the job's action in the worker's transaction and return its result.

        :param user_active: the user's ``active``, or None if there is no such user
        :param gone: ids of the job's records that were deleted

        A worker that read both with the job's row, in this transaction's snapshot, passes them on; otherwise they are
        read here.
        """
        model, _, method = name.rpartition(".")
        given = json.loads(context or "{}")
        lang = given.get("lang")
        if lang and not self.env["res.lang"]._get_data(code=lang):
            lang = None  # the language was removed
        jobs = self.with_context(lang=lang)  # error messages are in the language of the job
        if model not in self.env:
            raise GiveUp(jobs.env._("The model %s no longer exists because its module was uninstalled.", model))
        user = jobs._sidestream_user(user_id, user_active)
        env = jobs._sidestream_env(user, given, job_id, attempt)
        ids, *rest = args
        records = jobs._sidestream_records(env[model].browse(ids), gone)
        arguments = [decode(env, one) for one in rest]
        named = {key: decode(env, one) for key, one in kwargs.items()}
        result = getattr(records, method)(*arguments, **named)
        env.flush_all()
        return result

    @api.model
    def _sidestream_user(self, user_id, active):
        """Return the user that a job runs as; raise GiveUp without an active one."""
        if not user_id:  # not enqueued by Odoo, so run_as, key and limit of its action were not applied
            raise GiveUp(self.env._("This job has no user to run as. Enqueue it in Odoo with records.enqueue()."))
        user = self.env["res.users"].browse(user_id)
        if user.id == SUPERUSER_ID or active is True:
            return user
        if active is UNREAD:
            try:
                active = user.active
            except MissingError:
                active = None
        if active is None:
            raise GiveUp(self.env._("The user that this job runs as (id %s) was deleted.", user_id))
        if not active and not user._is_public():
            raise GiveUp(
                self.env._(
                    "The user %s is archived. Unarchive the user, then retry the job.",
                    user.name,
                )
            )
        return user

    @api.model
    def _sidestream_records(self, records, gone):
        """Return those of the job's records that still exist; raise GiveUp if there are none."""
        if not records or gone == []:
            return records
        found = records.exists() if gone is None else records.browse(one for one in records._ids if one not in gone)
        if not found:
            raise GiveUp(
                self.env._(
                    "The records of this job were deleted before it ran: %(model)s %(ids)s.",
                    model=self.env["ir.model"]._get(records._name).name or records._name,
                    ids=", ".join(str(one) for one in records._ids[:5]),
                )
            )
        return found

    @api.model
    def _sidestream_env(self, user, context, job_id, attempt):
        companies = self._sidestream_companies(user, context.pop("company", None), context.get("allowed_company_ids"))
        if companies:
            context["allowed_company_ids"] = companies
        if context.get("lang") and not self.env["res.lang"]._get_data(code=context["lang"]):
            del context["lang"]  # the language was removed meanwhile
        run_context = dict(context, sidestream_job_id=job_id, sidestream_attempt=attempt)
        self.env.transaction.default_env = env = self.env(user=user.id, context=run_context, su=user.id == SUPERUSER_ID)
        return env

    @api.model
    def _sidestream_companies(self, user, company_id, allowed):
        """Return the ids of the companies to run in, main one first; raise GiveUp without access."""
        if not company_id and not allowed:
            return []
        needed = list(allowed or [company_id])
        if user.id == SUPERUSER_ID:
            there = set(self.env["res.company"].browse(needed).exists().ids)
            missing = set(needed[:1]) - there  # it runs without deleted companies other than the main one
            may = needed = [one for one in needed if one in there]
        else:
            may = user._get_company_ids()
            missing = set(needed) - set(may)
        if missing:
            names = self.env["res.company"].browse(sorted(missing)).exists().mapped("name")
            if not names:
                raise GiveUp(self.env._("The company of this job was deleted."))
            raise GiveUp(
                self.env._(
                    "%(user)s no longer has access to %(companies)s. Restore the access, then retry the job.",
                    user=user.name,
                    companies=", ".join(names),
                )
            )
        return needed if allowed else needed + [one for one in may if one != company_id]

    @api.model
    def _sidestream_idempotency_key(self, job_id, call=""):
        """Return the idempotency key of an external call, the same on every attempt."""
        return f"{identify(self.env.cr._obj, allow_copy=True).origin_of(job_id)}:{job_id}:{call}"

    def _on_failed(self):
        """Override this hook to react when a job has failed; only a person's retry runs it again.

        It is called at most once per failure, as the superuser, in its own transaction, after the failure is committed.
        """

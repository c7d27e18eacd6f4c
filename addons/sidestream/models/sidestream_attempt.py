from sidestream.job.reason import Reason, ReasonCode

from odoo import api, fields, models

from ..fields import RedactedText
from ..messages import error_message, reason_message


class SidestreamAttempt(models.Model):
    """The engine's table of what happened to jobs before they were done, read-only."""

    _name = "sidestream.attempt"
    _description = "Background Job Attempt"
    _table = "sidestream_attempt"
    _auto = False
    _log_access = False
    _order = "id desc"
    _rec_name = "event"

    job_id = fields.Many2one("sidestream.job", readonly=True)
    event = fields.Selection(
        [
            ("started", "Started"),
            ("failed", "Failed"),
            ("crashed", "Process Died"),
            ("released", "Released"),
            ("done", "Done"),
            ("timeout", "Timed Out"),
            ("cancelled", "Cancelled"),
        ],
        readonly=True,
    )
    at = fields.Datetime(string="Date", readonly=True)
    message = fields.Char(
        string="Details", compute="_compute_message", help="The error, or why the worker handed the job back."
    )
    detail = RedactedText(string="Technical Details", readonly=True, groups="sidestream.group_sidestream_manager")
    worker = fields.Char(readonly=True, groups="sidestream.group_sidestream_manager")

    @api.depends("detail", "event")
    @api.depends_context("lang")
    def _compute_message(self):
        for attempt in self:
            detail = (attempt.sudo().detail or "").strip()
            reason = Reason.parse(detail)
            if reason.code is ReasonCode.SNOOZED:
                attempt.message = self.env._("Snoozed for %(seconds)s s: %(reason)s", seconds=reason.params["seconds"],
                                             reason=reason.params["message"])  # fmt: skip
            elif reason.code is not ReasonCode.TEXT:
                attempt.message = reason_message(self.env, detail)
            else:
                attempt.message = error_message(detail.split("\n")[0])  # a traceback may follow

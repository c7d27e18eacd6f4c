import re

from odoo import api, fields, models

from ..fields import RedactedText
from ..messages import error_message, reason_message

SNOOZED = re.compile(r"snoozed for (\S+) s: (.*)")
RAN = re.compile(r"since (\S+) s")
"""How the engine records that an action snoozed its job, and for how long a job had run."""


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
            ("released", "Handed Back"),
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
            first = (attempt.sudo().detail or "").strip().split("\n")[0]  # a traceback may follow
            snoozed, ran = SNOOZED.fullmatch(first), RAN.fullmatch(first)
            if attempt.event == "started":
                alone = self.env._("Runs alone, because its last worker died") if first == "alone" else False
                attempt.message = self.env._("It had run for %s s", ran[1]) if ran else alone
            elif snoozed:
                attempt.message = self.env._("Snoozed for %(seconds)s s: %(reason)s", seconds=snoozed[1],
                                             reason=snoozed[2])  # fmt: skip
            elif attempt.event in ("released", "cancelled"):
                attempt.message = reason_message(self.env, first)
            else:
                attempt.message = error_message(first)

import re

from odoo import api, fields, models

from .redacted import RedactedText

SNOOZED = re.compile(r"snoozed for (\S+) s: (.*)")
RAN = re.compile(r"since (\S+) s")
"""How the engine writes that an action put itself off, and that a job was seen running."""


class SidestreamAttempt(models.Model):
    """What happened to a job beyond "it was done": the engine's table, read only."""

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
            ("crashed", "Process died"),
            ("released", "Handed back"),
            ("done", "Done"),
            ("timeout", "Too long"),
            ("cancelled", "Cancelled"),
        ],
        readonly=True,
    )
    at = fields.Datetime(string="When", readonly=True)
    message = fields.Char(compute="_compute_message", help="What went wrong, or why it was handed back, in words.")
    detail = RedactedText(string="Details", readonly=True, groups="sidestream.group_manager")
    worker = fields.Char(string="Worker", readonly=True, groups="sidestream.group_manager")

    @api.depends("detail", "event")
    @api.depends_context("lang")
    def _compute_message(self):
        jobs = self.env["sidestream.job"]
        for attempt in self:
            first, _, _ = (attempt.sudo().detail or "").strip().partition("\n")  # a traceback may follow it
            snoozed, ran = SNOOZED.fullmatch(first), RAN.fullmatch(first)
            if attempt.event == "started":
                alone = self.env._("Alone, because the worker that had it died") if first == "alone" else False
                attempt.message = self.env._("It had run for %s s by then", ran[1]) if ran else alone
            elif snoozed:
                attempt.message = self.env._("Put off for %(seconds)s s: %(reason)s", seconds=snoozed[1],
                                             reason=snoozed[2])  # fmt: skip
            elif attempt.event in ("released", "cancelled"):
                attempt.message = jobs._in_words(first)
            else:
                attempt.message = jobs._without_kind(first)

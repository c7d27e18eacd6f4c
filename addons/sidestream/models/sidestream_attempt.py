from odoo import api, fields, models


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
    message = fields.Char(compute="_compute_message", help="The last line of the details, without Python's names.")
    detail = fields.Text(string="Details", readonly=True, groups="sidestream.group_manager")
    supervisor = fields.Char(string="Worker", readonly=True, groups="sidestream.group_manager")

    @api.depends("detail")
    def _compute_message(self):
        for attempt in self:
            lines = (attempt.sudo().detail or "").strip().splitlines()
            kind, colon, text = (lines[-1] if lines else "").partition(": ")
            # "odoo.exceptions.UserError: No courier ..." is for the developer up to the colon.
            attempt.message = text if colon and text and " " not in kind else kind + colon + text

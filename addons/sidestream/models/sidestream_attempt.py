from odoo import fields, models


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
    detail = fields.Text(readonly=True)
    supervisor = fields.Char(string="Worker", readonly=True)

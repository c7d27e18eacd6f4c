from odoo import fields, models


class ResCompany(models.Model):
    _inherit = "res.company"

    sidestream_enabled = fields.Boolean(
        string="Background Jobs",
        default=True,
        help="When off, this company's actions run at once, in the user's own request, as without Sidestream.",
    )

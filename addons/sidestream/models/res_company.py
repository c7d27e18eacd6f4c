from odoo import api, fields, models
from odoo.tools import ormcache


class ResCompany(models.Model):
    _inherit = "res.company"

    sidestream_enabled = fields.Boolean(
        string="Background Jobs",
        default=True,
        help="When off, this company's actions run at once, in the user's own request, as without Sidestream. "
        "Jobs for later stay jobs.",
    )

    def write(self, vals):
        result = super().write(vals)
        if "sidestream_enabled" in vals:
            self._sidestream_forget()
            # Another thread of this process may read the old value before this is committed, and would keep it.
            self.env.cr.postcommit.add(self._sidestream_forget)
        return result

    def _sidestream_forget(self):
        self.env.registry.clear_cache()

    @api.model
    @ormcache("company_id")
    def _sidestream_is_enabled(self, company_id):
        """Whether actions of the company run in the background; asked at each call of enqueue()."""
        company = self.sudo().browse(company_id)
        company.fetch(["sidestream_enabled"])  # alone: reading the field would fetch the company's whole row along
        return company.sidestream_enabled

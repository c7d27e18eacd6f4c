from odoo import api, fields, models
from odoo.tools import ormcache


class ResCompany(models.Model):
    _inherit = "res.company"

    sidestream_enabled = fields.Boolean(
        string="Background Jobs",
        default=True,
        help="If disabled, the actions of this company run immediately in the user's request, except jobs that are "
        "scheduled for later.",
    )

    def write(self, vals):
        result = super().write(vals)
        if "sidestream_enabled" in vals:
            self._sidestream_forget()
            # Another thread may have cached the old value before this commit.
            self.env.cr.postcommit.add(self._sidestream_forget)
        return result

    def _sidestream_forget(self):
        self.env.registry.clear_cache()

    @api.model
    @ormcache("company_id")
    def _sidestream_is_enabled(self, company_id):
        """Whether actions of the company run in the background; called at each enqueue()."""
        company = self.sudo().browse(company_id)
        company.fetch(["sidestream_enabled"])  # only this field: reading it would fetch the whole row
        return company.sidestream_enabled

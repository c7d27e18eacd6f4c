from odoo import models
from odoo.exceptions import UserError


class IrModuleModule(models.Model):
    _inherit = "ir.module.module"

    def button_uninstall(self):
        result = super().button_uninstall()  # first, because it checks the rights; an error rolls its writes back
        if self.search_count([("name", "=", "sidestream"), ("state", "=", "to remove")]):
            self._sidestream_check_no_pending_jobs()
        return result

    def _sidestream_check_no_pending_jobs(self):
        """Refuse to remove the tables while jobs are pending; also called just before the removal."""
        count = self.env["sidestream.job"].sudo().search_count([("state", "=", "pending")])
        if count:
            raise UserError(
                self.env._(
                    "%(count)s background jobs are not finished yet. Wait for them or cancel them under Background "
                    "Jobs, then uninstall Sidestream.",
                    count=count,
                )
            )

from odoo import models
from odoo.exceptions import UserError


class IrModuleModule(models.Model):
    _inherit = "ir.module.module"

    def button_uninstall(self):
        result = super().button_uninstall()  # first: it refuses who may not, and its writes are gone with the error
        if self.search_count([("name", "=", "sidestream"), ("state", "=", "to remove")]):
            self._sidestream_check_no_open_jobs()
        return result

    def _sidestream_check_no_open_jobs(self):
        """Refuse to remove the tables while jobs are open in them; asked again when they are about to go."""
        count = self.env["sidestream.job"].sudo().search_count([("state", "=", "pending")])
        if count:
            raise UserError(
                self.env._(
                    "%(count)s background jobs are not finished yet. Let them finish, or cancel them under "
                    "Background Jobs, then uninstall Sidestream.",
                    count=count,
                )
            )

from odoo import models
from odoo.exceptions import UserError


class IrModuleModule(models.Model):
    _inherit = "ir.module.module"

    def button_uninstall(self):
        going = set(self.mapped("name")) | set(self.downstream_dependencies().mapped("name"))
        if "sidestream" in going:
            count = self.env["sidestream.job"].sudo().search_count([("state", "=", "open")])
            if count:
                raise UserError(
                    self.env._(
                        "%(count)s background jobs are not finished yet. Let them finish, or cancel them under "
                        "Background Jobs, then uninstall Sidestream.",
                        count=count,
                    )
                )
        return super().button_uninstall()

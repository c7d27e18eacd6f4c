import base64

from odoo import models


class AccountMove(models.Model):
    _inherit = "account.move"

    def render_again(self):
        """Render the invoice's PDF again and return it as base64, to compare it with a job's PDF."""
        self.ensure_one()
        self.check_access("read")
        report = self.env["ir.actions.report"].with_context(report_pdf_no_attachment=True)
        pdf, _kind = report._render_qweb_pdf("account.account_invoices", res_ids=self.ids)
        return base64.b64encode(pdf).decode()

import requests

from odoo import fields, models
from odoo.exceptions import UserError
from odoo.tools.translate import LazyTranslate

from odoo.addons.sidestream import RetryPolicy, action

_lt = LazyTranslate(__name__)
URL = "sidestream_demo.courier_url"
MODE = "sidestream_demo.mode"
"""System parameter: "off" leaves Confirm as Odoo has it; anything else ships and invoices."""
PATIENCE = 30
"""Seconds that the courier's API may take."""


class SaleOrder(models.Model):
    _inherit = "sale.order"

    background_job_count = fields.Integer(compute="_compute_background_job_count")

    def _compute_background_job_count(self):
        for order in self:
            order.background_job_count = len(order._sidestream_jobs())

    def action_confirm(self):
        result = super().action_confirm()
        if self.env["ir.config_parameter"].sudo().get_param(MODE) != "off":
            for order in self:
                order.enqueue()._send_to_shipping_connector()
                order.enqueue()._invoice_and_print()
        return result

    def action_background_jobs(self):
        """Show the jobs that are about this order."""
        action_ = self.env["ir.actions.act_window"]._for_xml_id("sidestream.job_action")
        return dict(action_, domain=[("id", "in", self._sidestream_jobs().ids)], context={})

    @action(
        label=_lt("Send to the courier"),
        three_step=True,
        key="courier:{carrier_id.shipping_account}",
        # A courier has bad moments. What a person has to mend is a UserError, which is told at once.
        retry=RetryPolicy(max_attempts=8, first_delay=0.5, max_delay=60),
        hard_limit=120,
    )
    def _send_to_shipping_connector(self):
        """Read the order; call the courier outside any transaction; keep the courier's number."""
        self.ensure_one()
        url = self.env["ir.config_parameter"].sudo().get_param(URL)
        if not url:
            raise UserError(self.env._("No courier is configured yet; please ask your administrator."))
        shipment = {
            "order": self.name,
            "to": self.partner_shipping_id.display_name,
            "lines": [[line.product_id.display_name, line.product_uom_qty] for line in self.order_line],
        }

        def call(key):
            answer = requests.post(
                f"{url}/shipments", json=shipment, headers={"Idempotency-Key": key}, timeout=PATIENCE
            )
            answer.raise_for_status()
            return answer.json()

        answer = yield call
        # On the transfer and not on the order, which the other job writes to: two jobs that write one row take turns.
        self.picking_ids.carrier_tracking_ref = answer["reference"]

    @action(label=_lt("Invoice and print"), hard_limit=300)
    def _invoice_and_print(self):
        """Create the invoice, post it, render it to PDF and attach that."""
        self.ensure_one()
        invoice = self._create_invoices()
        invoice.action_post()
        report = self.env["ir.actions.report"]
        pdf, _kind = report._render_qweb_pdf("account.account_invoices", res_ids=invoice.ids)
        self.env["ir.attachment"].create(
            {
                "name": f"{invoice.name.replace('/', '_')}.pdf",
                "raw": pdf,
                "mimetype": "application/pdf",
                "res_model": invoice._name,
                "res_id": invoice.id,
            }
        )

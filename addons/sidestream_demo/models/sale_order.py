import requests

from odoo import fields, models
from odoo.exceptions import UserError
from odoo.tools.translate import LazyTranslate

from odoo.addons.sidestream import RetryPolicy, action

_lt = LazyTranslate(__name__)
URL = "sidestream_demo.courier_url"
MODE = "sidestream_demo.mode"
"""System parameter. "off" keeps Odoo's own behavior of Confirm; any other value ships and invoices."""
COURIER_TIMEOUT = 30
"""In seconds."""


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
        """Open the list of the jobs about this order."""
        action_ = self.env["ir.actions.act_window"]._for_xml_id("sidestream.sidestream_job_action")
        return dict(action_, domain=[("id", "in", self._sidestream_jobs().ids)], context={})

    @action(
        label=_lt("Send to the courier"),
        three_step=True,
        key="courier:{carrier_id.shipping_account}",
        # The courier's API sometimes fails. An error that a person has to fix is a UserError, which is not retried.
        retry=RetryPolicy(max_attempts=8, first_delay=0.5, max_delay=60),
        hard_limit=120,
    )
    def _send_to_shipping_connector(self):
        """Read the order, call the courier outside any transaction, and store the tracking number."""
        self.ensure_one()
        url = self.env["ir.config_parameter"].sudo().get_param(URL)
        if not url:
            raise UserError(self.env._("No courier is configured. Please contact your administrator."))
        shipment = {
            "order": self.name,
            "to": self.partner_shipping_id.display_name,
            "lines": [[line.product_id.display_name, line.product_uom_qty] for line in self.order_line],
        }

        def call(key):
            answer = requests.post(
                f"{url}/shipments", json=shipment, headers={"Idempotency-Key": key}, timeout=COURIER_TIMEOUT
            )
            answer.raise_for_status()
            return answer.json()

        answer = yield call
        # On the transfer, because the other job writes to the order, and two jobs that write to one row conflict.
        self.picking_ids.carrier_tracking_ref = answer["reference"]

    @action(label=_lt("Invoice and print"), hard_limit=300)
    def _invoice_and_print(self):
        """Create and post the invoice, render it to PDF and attach the PDF."""
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

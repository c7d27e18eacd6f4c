from odoo import fields, models


class DeliveryCarrier(models.Model):
    _inherit = "delivery.carrier"

    shipping_account = fields.Char(
        default="demo", help="Our account with the courier, which accepts one call per account at a time."
    )

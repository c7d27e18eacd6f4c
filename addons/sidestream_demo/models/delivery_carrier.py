from odoo import fields, models


class DeliveryCarrier(models.Model):
    _inherit = "delivery.carrier"

    shipping_account = fields.Char(
        default="demo", help="Our account at the courier, which takes one call of an account at a time."
    )

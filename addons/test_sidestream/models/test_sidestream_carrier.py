from odoo import fields, models


class TestSidestreamCarrier(models.Model):
    _name = "test.sidestream.carrier"
    _description = "Test Carrier"

    name = fields.Char(required=True)
    account = fields.Char()

"""Run methods of Odoo models as jobs."""

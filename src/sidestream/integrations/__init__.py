"""Integrations with other tools. Sidestream itself never imports them."""

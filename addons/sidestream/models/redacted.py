from sidestream import redact_payload, redact_text

from odoo import fields


class RedactedText(fields.Text):
    """A text, without the values that look like secrets wherever it is read: an error, a traceback."""

    def convert_to_record(self, value, record):
        found = super().convert_to_record(value, record)
        return redact_text(found) if found else found


class RedactedArguments(fields.Text):
    """A job's arguments, without those that look like secrets; positional ones are known by their parameter's name."""

    def convert_to_record(self, value, record):
        found = super().convert_to_record(value, record)
        return redact_payload(found, record._parameter_names()) if found else found

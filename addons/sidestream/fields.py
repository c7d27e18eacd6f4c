"""Field types of the models that show the engine's tables."""

from sidestream import redact_payload, redact_text

from odoo import fields
from odoo.tools import SQL


class JobState(fields.Selection):
    """A job's state, whose conditions let PostgreSQL use the partial indexes of the states.

    An IN of two states does not imply the predicates of those indexes, but an OR does. Without it, the menu's first
    list would read every job that was ever done. https://www.postgresql.org/docs/current/indexes-partial.html
    """

    def _condition_to_sql(self, field_expr, operator, value, model, alias, query):
        condition = super()._condition_to_sql
        if operator == "in" and len(value) > 1:
            terms = [condition(field_expr, "in", [one], model, alias, query) for one in value]
            return SQL("(%s)", SQL(" OR ").join(terms))
        return condition(field_expr, operator, value, model, alias, query)


class Duration(fields.Float):
    """The hours between two columns, computed by PostgreSQL so that lists can be sorted by it."""

    start = end = None

    def __init__(self, **options):
        super().__init__(readonly=True, **options)

    def to_sql(self, model, alias):
        """Return the difference as an expression instead of a column."""
        return SQL("(EXTRACT(EPOCH FROM %s - %s) / 3600)::float8",
                   SQL.identifier(alias, self.end), SQL.identifier(alias, self.start))  # fmt: skip


class RedactedText(fields.Text):
    """A text, such as an error or traceback, shown without values that look like secrets."""

    def convert_to_record(self, value, record):
        found = super().convert_to_record(value, record)
        return redact_text(found) if found else found


class RedactedArguments(fields.Text):
    """A job's arguments by parameter name, shown without values that look like secrets."""

    def convert_to_record(self, value, record):
        found = super().convert_to_record(value, record)
        return redact_payload(found, record._parameter_names()) if found else found

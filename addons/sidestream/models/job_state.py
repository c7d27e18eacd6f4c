from odoo import fields
from odoo.tools import SQL


class JobState(fields.Selection):
    """A job's state, whose conditions let PostgreSQL use the partial indexes of the states.

    An IN of two states implies none of their predicates, an OR does: without it, the menu's first list (open and
    failed) would read every job that was ever done. https://www.postgresql.org/docs/current/indexes-partial.html
    """

    def _condition_to_sql(self, field_expr, operator, value, model, alias, query):
        if operator == "in" and len(value) > 1:
            condition = super()._condition_to_sql
            return SQL(
                "(%s)", SQL(" OR ").join(condition(field_expr, "in", [one], model, alias, query) for one in value)
            )
        return super()._condition_to_sql(field_expr, operator, value, model, alias, query)

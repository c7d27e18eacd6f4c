"""Render the templates of declarations, such as ``courier:{carrier_id}``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from string import Formatter

from sidestream.errors import SettingsError


def fields_of(what: str, template: str) -> tuple[str, ...]:
    """Return the fields that ``template`` names; ``what`` says in an error what it is for.

    Raises :class:`~sidestream.errors.SettingsError` when it cannot be read.
    """
    return tuple(field for _, field in _parts(what, template) if field is not None)


def render_template(what: str, template: str, value_of: Callable[[str], str]) -> str:
    """Return ``template`` with each field replaced by its text."""
    return "".join(text + ("" if field is None else value_of(field)) for text, field in _parts(what, template))


def _parts(what: str, template: str) -> Iterator[tuple[str, str | None]]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise SettingsError(
            f"The {what} {template!r:.80} cannot be read ({error}); write braces as {{{{ and }}}}."
        ) from None
    for text, field, form, conversion in parsed:
        if field == "" or form or conversion:
            raise SettingsError(
                f"The {what} {template!r:.80}: expected plain names in braces, for example 'courier:{{carrier_id}}'."
            )
        yield text, field

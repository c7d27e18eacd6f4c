"""Convert a job's arguments to JSON and back; other values become {"$": kind, ...}."""

from datetime import date, datetime
from decimal import Decimal

from markupsafe import Markup

from sidestream import GiveUp, InvalidJob

from odoo import models

KIND = "$"


def encode(value, where="arguments"):
    """Return ``value`` as JSON values; raise InvalidJob if it cannot be stored."""
    if isinstance(value, Markup):  # before str, of which it is a subclass
        return {KIND: "markup", "value": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, models.BaseModel):
        if any(
            not isinstance(id_, int) for id_ in value._ids
        ):  # not value.ids, which holds the origin of an unsaved record
            raise InvalidJob(f"{where} holds a record of {value._name} that is not saved yet; save it first.")
        return {KIND: "records", "model": value._name, "ids": list(value._ids)}
    if isinstance(value, datetime):
        return {KIND: "datetime", "value": value.isoformat()}
    if isinstance(value, date):
        return {KIND: "date", "value": value.isoformat()}
    if isinstance(value, Decimal):
        return {KIND: "decimal", "value": str(value)}
    if isinstance(value, list | tuple):
        return [encode(one, f"{where}[{at}]") for at, one in enumerate(value)]
    if isinstance(value, dict):
        if KIND in value or any(not isinstance(name, str) for name in value):
            raise InvalidJob(f"{where} has a dictionary whose keys are not text (or '{KIND}'); use text keys.")
        return {name: encode(one, f"{where}[{name!r}]") for name, one in value.items()}
    raise InvalidJob(
        f"{where} is a {type(value).__name__}, which a job cannot store; pass records, text, HTML, numbers, dates, "
        "decimals, lists and dictionaries."
    )


def decode(env, value):
    """Return the value that :func:`encode` received, with records in ``env``."""
    if isinstance(value, list):
        return [decode(env, one) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    if kind is None:
        return {name: decode(env, one) for name, one in value.items()}
    if kind == "records":
        if value["model"] not in env:
            raise GiveUp(f"An argument is of the model {value['model']!r}, which this database no longer has.")
        return env[value["model"]].browse(value["ids"])
    makers = {"datetime": datetime.fromisoformat, "date": date.fromisoformat, "decimal": Decimal, "markup": Markup}
    if kind not in makers:
        raise GiveUp(f"An argument is of the kind {kind!r}, which this release does not know; upgrade Sidestream.")
    return makers[kind](value["value"])

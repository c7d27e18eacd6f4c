"""``sidestream pause``, ``resume``, ``limit``, ``weight``, ``aging`` and ``rules``: what governs many jobs at once.

The rules are rows in PostgreSQL; every worker's maintenance see a change within half a second.
"""

from __future__ import annotations

import getpass
import math
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import fail, print_json, print_line, print_table
from sidestream.errors import SettingsError

if TYPE_CHECKING:
    from sidestream.job.rules import Limit, Pause
    from sidestream.store.rules import Entry

NEGATIVE = {"ignore_unknown_options": True}
"""So that -1 is read as a number, and refused as one."""
_SECONDS = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "day": 86400}

limit = typer.Typer(no_args_is_help=True, help="Limit how many jobs run at once, and how many start a second.")
weight = typer.Typer(no_args_is_help=True, help="Give a queue or a group a larger or smaller share.")

Queue = Annotated[str | None, typer.Option(help="A queue.")]
Action = Annotated[str | None, typer.Option(help="An action, everywhere or with --group.")]
Group = Annotated[str | None, typer.Option(help="A group, for example company:2.")]
Note = Annotated[str | None, typer.Option(help="Why, for whoever wonders later.")]
Limited = Annotated[str, typer.Argument(metavar="SCOPE[:NAME]", help="global, queue:NAME, action:NAME or key:RULE.")]
Weighed = Annotated[str, typer.Argument(metavar="KIND:NAME", help="queue:NAME or group:NAME.")]


def pause(
    context: typer.Context,
    *,
    queue: Queue = None,
    action: Action = None,
    group: Group = None,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Let no more jobs of a queue, an action, a group, or an action of a group start; running ones go on."""
    what = _pause(queue, action, group)
    _write(context, lambda cursor, rules: rules.pause(cursor, what, by=who(), note=note))
    _tell(
        as_json, {"paused": _named(what)}, f"Paused: {_words(what)}. Workers know within a second; what runs goes on."
    )


def resume(
    context: typer.Context, *, queue: Queue = None, action: Action = None, group: Group = None, as_json: AsJson = False
) -> None:
    """Let jobs start again that 'sidestream pause' holds; name what that named."""
    what = _pause(queue, action, group)
    if not _write(context, lambda cursor, rules: rules.resume(cursor, what)):
        fail(f"There is no pause of {_words(what)}; 'sidestream rules' lists those that there are.")
    _tell(as_json, {"resumed": _named(what)}, f"Resumed: {_words(what)}.")


@limit.command("set")
def limit_set(
    context: typer.Context,
    scope: Limited,
    *,
    concurrency: Annotated[int | None, typer.Option(help="Most that run at once; 0: none. Not given: any.")] = None,
    rate: Annotated[str | None, typer.Option(help="Starts a second, or 30/min, 5/h, 1/day; 0: none.")] = None,
    burst: Annotated[int, typer.Option(help="Starts that may be made at once after a quiet time.")] = 1,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Set a limit, in place of the one that was there; jobs that wait for it go on within a second."""
    from sidestream.job.rules import Limit

    kind, name = _scope(scope)
    wanted = Limit(concurrency, None if rate is None else _rate(rate), burst)
    _write(context, lambda cursor, rules: rules.set_limit(cursor, kind, name, wanted, by=who(), note=note))
    _tell(as_json, {"scope": kind, "name": name, **_limit(wanted)}, f"Limited: {scope} to {_limit_words(wanted)}.")


@limit.command("remove")
def limit_remove(context: typer.Context, scope: Limited, *, as_json: AsJson = False) -> None:
    """Lift a limit."""
    kind, name = _scope(scope)
    if not _write(context, lambda cursor, rules: rules.remove_limit(cursor, kind, name)):
        fail(f"There is no limit of {scope}; 'sidestream limit list' lists those that there are.")
    _tell(as_json, {"scope": kind, "name": name, "removed": True}, f"No longer limited: {scope}.")


@limit.command("list")
def limit_list(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the limits."""
    _list(context, ("limit",), as_json=as_json)


@weight.command("set", context_settings=NEGATIVE)
def weight_set(
    context: typer.Context,
    what: Weighed,
    value: Annotated[float, typer.Argument(metavar="WEIGHT", help="0.01 to 1000; others have 1.")],
    *,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Give a queue or a group so many turns for one of a queue or group with weight 1."""
    kind, name = _weighed(what)
    _write(context, lambda cursor, rules: rules.set_weight(cursor, kind, name, value, by=who(), note=note))
    _tell(as_json, {"kind": kind, "name": name, "weight": value}, f"The {kind} {name} has weight {value:g}.")


@weight.command("remove")
def weight_remove(context: typer.Context, what: Weighed, *, as_json: AsJson = False) -> None:
    """Let a queue or a group have weight 1 again."""
    kind, name = _weighed(what)
    if not _write(context, lambda cursor, rules: rules.remove_weight(cursor, kind, name)):
        fail(f"The {kind} {name} has no weight of its own; 'sidestream weight list' lists those that have.")
    _tell(as_json, {"kind": kind, "name": name, "weight": 1.0}, f"The {kind} {name} has weight 1 again.")


@weight.command("list")
def weight_list(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the weights."""
    _list(context, ("weight",), as_json=as_json)


def aging(
    context: typer.Context,
    seconds: Annotated[float | None, typer.Argument(help="Seconds; not given: show them.")] = None,
    *,
    usual: Annotated[bool, typer.Option("--usual", help="Go back to the usual ones.")] = False,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Show or set after how long every second turn of a queue is that of jobs of lower priority."""
    from sidestream.job.rules import DEFAULT_AGEING

    if usual and seconds is not None:
        raise SettingsError("--usual and a number of seconds are both given; give one of them.")
    if usual:
        _write(context, lambda cursor, rules: rules.remove_aging(cursor))
        found = DEFAULT_AGEING
    elif seconds is not None:
        _write(context, lambda cursor, rules: rules.set_aging(cursor, seconds, by=who(), note=note))
        found = seconds
    else:
        found = _write(context, lambda cursor, rules: rules.read(cursor)).aging
    _tell(as_json, {"aging": found}, f"A job that has been ready for {found:g} s gets every second turn of its queue.")


def all_rules(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List every pause, limit and weight: who set it, when and why."""
    _list(context, ("pause", "limit", "weight", "aging"), as_json=as_json)


def _list(context: typer.Context, kinds: tuple[str, ...], *, as_json: bool) -> None:
    found = [one for one in _write(context, lambda cursor, rules: rules.entries(cursor)) if one.kind in kinds]
    if as_json:
        print_json({"rules": [_plain(one) for one in found]})
    elif not found:
        print_line(f"No {kinds[0] if len(kinds) == 1 else 'rule'} is set.")
    else:
        print_table(
            ("RULE", "OF", "IS", "NOTE", "BY", "SINCE (UTC)"),
            [(one.kind, _of(one), _is(one), one.note, one.changed_by, one.changed_at) for one in found],
        )


def _write(context: typer.Context, change: Callable[[Any, Any], Any]) -> Any:
    from sidestream.store import rules
    from sidestream.wiring.client import store_cursor

    with store_cursor(options_of(context).settings()) as cursor:
        return change(cursor, rules)


def _tell(as_json: bool, plain: dict[str, object], sentence: str) -> None:
    if as_json:
        print_json(plain)
    else:
        print_line(sentence)


def who() -> str:
    """Return what a change is signed with: the account and the host."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a number without an account
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _pause(queue: str | None, action: str | None, group: str | None) -> Pause:
    from sidestream.job.rules import Pause

    if queue is None and action is None and group is None:
        raise SettingsError("Nothing is named; give --queue, --action, --group, or --action with --group.")
    return Pause(queue, action, group)


def _scope(text: str) -> tuple[str, str]:
    kind, colon, name = text.partition(":")
    if kind not in ("global", "queue", "action", "key") or (kind == "global") == bool(colon):
        raise SettingsError(
            f"{text!r:.80} is not what a limit can be of; expected global, queue:NAME, action:NAME or key:RULE."
        )
    return kind, name


def _weighed(text: str) -> tuple[str, str]:
    kind, colon, name = text.partition(":")
    if kind not in ("queue", "group") or not colon:
        raise SettingsError(f"{text!r:.80} is not what has a weight; expected queue:NAME or group:NAME.")
    return kind, name


def _rate(text: str) -> float:
    number, slash, unit = text.partition("/")
    try:
        found = float(number)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or (slash and unit not in _SECONDS):
        raise SettingsError(f"--rate {text!r:.40} is not a rate; expected starts a second, or 30/min, 5/h, 1/day.")
    return found / _SECONDS.get(unit, 1)


def _named(what: Pause) -> dict[str, str]:
    parts = {"queue": what.queue, "action": what.action, "group": what.group}
    return {name: value for name, value in parts.items() if value is not None}


def _words(what: Pause) -> str:
    return " of ".join(f"the {name} {value}" for name, value in _named(what).items())


def _limit(found: Limit) -> dict[str, object]:
    return {"concurrency": found.concurrency, "rate": found.rate, "burst": found.burst}


def _limit_words(found: Limit) -> str:
    parts = [] if found.concurrency is None else [f"{found.concurrency} at once"]
    if found.rate is not None:
        parts.append(f"{found.rate:g} a second" + (f", {found.burst} in a burst" if found.burst > 1 else ""))
    return " and ".join(parts)


def _of(entry: Entry) -> str:
    if entry.kind == "pause" and entry.pause is not None:
        return _words(entry.pause)
    return ":".join(filter(None, (entry.scope, entry.name or entry.group)))


def _is(entry: Entry) -> str:
    if entry.limit is not None:
        return _limit_words(entry.limit)
    if entry.weight is not None:
        return f"{entry.weight:g}"
    return "paused" if entry.seconds is None else f"{entry.seconds:g} s"


def _plain(entry: Entry) -> dict[str, object]:
    return {
        "rule": entry.kind,
        "scope": entry.scope,
        "name": entry.name or None,
        "group": entry.group or None,
        **({} if entry.limit is None else _limit(entry.limit)),
        **({} if entry.weight is None else {"weight": entry.weight}),
        **({} if entry.seconds is None else {"seconds": entry.seconds}),
        "note": entry.note,
        "by": entry.changed_by,
        "since": entry.changed_at,
    }

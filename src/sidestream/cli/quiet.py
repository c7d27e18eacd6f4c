"""``sidestream quiet``: let the workers of this host claim nothing for a while."""

from __future__ import annotations

from typing import Annotated

import typer

from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import fail, print_json, print_line
from sidestream.errors import SettingsError


def quiet(
    context: typer.Context,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Let them claim again.")] = False,
    worker: Annotated[str | None, typer.Option(help="Only this one; 'sidestream workers' shows their names.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let this host's workers finish what runs and claim nothing more; they stay up until told to stop."""
    from sidestream.process import acting_as
    from sidestream.wiring.data_folder import owner_of
    from sidestream.worker.run_dir import living, set_quiet

    settings = options_of(context).settings()

    def ask() -> tuple[list[str], list[str]]:
        asked = [folder for folder in living(settings.data_dir) if worker in (None, folder.name)]
        return [folder.name for folder in asked], [f.name for f in asked if set_quiet(f, quiet=not resume)]

    try:
        found, changed = acting_as(owner_of(settings), ask)
    except PermissionError as error:
        raise SettingsError(
            f"The workers of {settings.data_dir} belong to another user ({error.strerror}); run the command as that "
            "user, or as root."
        ) from error
    if not found:
        which = "no worker lives" if worker is None else f"no worker {worker!r:.80} lives"
        fail(f"On this host {which} in the data folder {settings.data_dir}; give the workers' own data_dir.")
    if as_json:
        print_json({"workers": found, "changed": changed, "quiet": not resume})
        return
    told = "claim again" if resume else "claim nothing more"
    print_line(f"{len(changed)} worker{'' if len(changed) == 1 else 's'} will {told} within a second.")
    if len(changed) < len(found):
        others = len(found) - len(changed)
        print_line(f"{others} {'was' if others == 1 else 'were'} {'working' if resume else 'quiet'} already.")

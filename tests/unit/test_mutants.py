"""The patches of ``make mutants`` apply to the present source."""

from __future__ import annotations

import pytest

from tests.mutants.run import HERE, MUTANTS, ROOT, apply


def test_every_patch_is_run() -> None:
    assert {path.stem for path in HERE.glob("*.patch")} == {mutant.name for mutant in MUTANTS}


@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS])
def test_the_patch_applies(name: str) -> None:
    tried = apply(name, ROOT, "--check")
    assert tried.returncode == 0, f"Make it anew: {tried.stderr}"

"""``make lint``: luacheck over the Redis function library, and a bound on its local variables.

The files of ``lua/`` are parts of one chunk and see each other's locals, so the chunk is what is checked; what is found
is reported under the file that it came from.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import sidestream.broker.redis
from sidestream.broker.redis.functions import library

ROOT = Path(__file__).resolve().parents[1]
MOST_LOCALS = 160
"""Local variables that the chunk may have at once. Lua itself refuses more than 200, on the server, for every user."""
_LUA_MOST_LOCALS = 200


class Chunk:
    """The library's source, and which file each of its lines came from."""

    def __init__(self) -> None:
        """Join the library as :func:`library` does."""
        # Lua itself does not know the first line, which names the library.
        self.source = "--" + library().source
        self._starts: list[tuple[int, int, str]] = []
        folder = Path(str(files(sidestream.broker.redis))) / "lua"
        for path in folder.rglob("*.lua"):
            text = path.read_text()
            first = self.source[: self.source.index(text)].count("\n") + 1
            self._starts.append((first, first + text.count("\n"), str(path.relative_to(ROOT))))

    def place(self, line: int) -> str:
        """Return ``file:line`` of a line of the chunk (counted from 1)."""
        for first, behind, path in self._starts:
            if first <= line < behind:
                return f"{path}:{line - first + 1}"
        return f"(joined by functions.py):{line}"


def check(chunk: Chunk) -> list[str]:
    """Return what luacheck finds, one line each."""
    command = ["luacheck", "--formatter", "plain", "--codes", "--config", str(ROOT / ".luacheckrc"), "-"]
    done = subprocess.run(command, input=chunk.source, capture_output=True, text=True, check=False)
    if done.returncode > 2:  # 1 and 2: it found something
        return [f"luacheck failed: {(done.stdout + done.stderr).strip()}"]
    return [
        re.sub(r"^stdin:(\d+):(\d+)", lambda found: f"{chunk.place(int(found[1]))}:{found[2]}", line)
        for line in done.stdout.splitlines()
    ]


def check_locals(chunk: Chunk, most: int = MOST_LOCALS) -> list[str]:
    """Return a complaint when the chunk has more than ``most`` local variables at once, or is not Lua at all."""
    padding = "local " + ", ".join(f"padding_{number}" for number in range(_LUA_MOST_LOCALS - most)) + " "
    command = ["luac5.1", "-p", "-"]
    done = subprocess.run(command, input=padding + "\n" + chunk.source, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    if "local variables" in done.stderr:
        advice = "put what only one file of lua/shared uses into a block of that file (do ... end)"
        most_of_all = f"Lua refuses more than {_LUA_MOST_LOCALS}"
        return [f"The function library has more than {most} local variables at once, and {most_of_all}; {advice}."]
    return [f"The function library is not Lua: {done.stderr.strip()}"]


def main() -> int:
    """Print what was found and return the exit code."""
    for tool in ("luacheck", "luac5.1"):
        if shutil.which(tool) is None:
            print(f"lint: {tool} is missing; run as root: apt-get install lua-check", file=sys.stderr)
            return 2
    chunk = Chunk()
    found = [*check(chunk), *check_locals(chunk)]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

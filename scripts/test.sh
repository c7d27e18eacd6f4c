#!/usr/bin/env bash
# make test: the engine's tests, then those with a real Odoo; with a path among the arguments, that alone.
set -euo pipefail
cd "$(dirname "$0")/.."

NO_TESTS=5 # pytest's exit code when nothing was selected
# More processes than cores: many tests mostly wait. tests/conftest.py and tests/odoo/conftest.py order the tests.
ENGINE=(-n 4 --dist worksteal)
ODOO=(-n 3 --dist loadfile --no-loadscope-reorder) # a file's tests share one Odoo

run() {
    .venv/bin/python -m pytest -q "$@"
}

for word in "$@"; do
    case $word in
    tests/odoo*) run "${ODOO[@]}" "$@"; exit ;;
    tests*) run "${ENGINE[@]}" "$@"; exit ;;
    esac
done
engine=0 odoo=0
run "${ENGINE[@]}" --ignore tests/odoo "$@" || engine=$?
[ "$engine" = 0 ] || [ "$engine" = $NO_TESTS ] || exit "$engine"
run "${ODOO[@]}" tests/odoo "$@" || odoo=$?
[ "$odoo" != $NO_TESTS ] || exit "$engine"
exit "$odoo"

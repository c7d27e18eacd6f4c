# Sourced by setup.sh and odoo.sh, which set NAME: how a step speaks, and how it fails.

APT_OPTIONS=(-qq -o Dpkg::Use-Pty=0 -o Acquire::Retries=3)

say() { printf '%s: %s\n' "$NAME" "$*"; }
fail() { printf '%s: %s\n' "$NAME" "$*" >&2; exit 1; }

# quietly WHAT COMMAND...: run it; show its output, and one sentence, only when it fails.
quietly() {
    local what=$1 output
    shift
    output=$("$@" 2>&1) || { printf '%s\n' "$output" | tail -n 20 >&2; fail "$what"; }
}

# apt_lists: read Debian's package lists, once a run.
apt_lists() {
    [ -z "${apt_lists_read:-}" ] || return 0
    quietly "apt-get update failed; check this machine's network and its package sources, then repeat: make $NAME" \
        apt-get "${APT_OPTIONS[@]}" update
    apt_lists_read=1
}

# alone: wait until no other make sets this folder up.
alone() {
    local path
    mkdir -p "$TOOLS" 2>/dev/null || :
    for path in "$TOOLS" .venv; do
        ! [ -e "$path" ] || [ -w "$path" ] || fail "${path##*/} is another user's; repeat as $(stat -c %U "$path"), or remove it as that user: make clean"
    done
    exec 9>"$TOOLS/setup.lock"
    flock -n 9 || { say "waiting for another make that sets this folder up"; flock 9; }
}

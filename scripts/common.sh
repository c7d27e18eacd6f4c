# Sourced by the scripts behind make, which set NAME (what make was asked for) and TOOLS: how a step speaks, how it fails.

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

# debian_mirror: print the mirror that this machine reads packages from.
debian_mirror() {
    local mirror list
    # A file that does not exist is no error here: Debian keeps its sources in one of three forms.
    mirror=$({ sed -n 's/^URIs: *\([^ ]*\/debian\/\{0,1\}\)$/\1/p; s/^deb  *\(\[[^]]*\] *\)\{0,1\}\([^ ]*\/debian\/\{0,1\}\) .*/\2/p' \
        /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list /etc/apt/sources.list 2>/dev/null || :; } | head -n 1)
    if [ -z "$mirror" ]; then # cloud images name a file that lists the mirrors
        list=$(sed -n 's/^URIs: *mirror+file:\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1 || :)
        mirror=$({ grep -ho '^[a-z]*://[^ ]*/debian/\{0,1\}' "${list#//}" 2>/dev/null || :; } | head -n 1)
    fi
    [ -n "$mirror" ] || fail "no Debian mirror is named in /etc/apt; add one, then repeat: make $NAME"
    printf '%s\n' "$mirror"
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

# system_python: print the system's own Python, 3.11 or newer, that can make a virtual environment.
# The workers that root starts become another user, who can reach this one.
system_python() {
    local candidate
    for candidate in /usr/bin/python3 /usr/bin/python3.1[1-9]; do
        if can_make_venv "$candidate"; then printf '%s\n' "$candidate"; return; fi
    done
    return 1
}

# any_python: print the system's Python, or the first on the PATH, that can make a virtual environment.
any_python() {
    local candidate
    system_python && return
    for candidate in python3 python3.1{1,2,3,4}; do
        if can_make_venv "$candidate"; then command -v "$candidate"; return; fi
    done
    return 1
}

can_make_venv() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# install_locked VENV LOCK MAKER...: VENV holds exactly what LOCK pins, and this package; MAKER and VENV's path makes it.
# Skipped when nothing changed since.
install_locked() {
    local venv=$1 lock=$2 wanted
    shift 2
    wanted=$(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)
    [ "$(cat "$venv/.sidestream-setup" 2>/dev/null)" != "$wanted $PWD" ] || return 0
    say "installing the packages of $lock into ${venv#"$PWD/"}"
    # A copied or moved folder's environment names another place, an interrupted one has no pip: made anew.
    if [ "$("$venv/bin/python" -c 'import pip, sys; print(sys.prefix)' 2>/dev/null || :)" != "$venv" ]; then
        rm -rf "$venv"
        quietly "$1 could not make ${venv#"$PWD/"}; read its message above." "$@" "$venv"
    fi
    quietly "pip could not install $lock; check the network, then repeat: make $NAME" \
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -q --require-hashes -r "$lock"
    quietly "pip could not install this package; read its message above." \
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -q --no-build-isolation --no-deps --no-index -e .
    echo "$wanted $PWD" >"$venv/.sidestream-setup"
}

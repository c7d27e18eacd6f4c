#!/usr/bin/env bash
# make setup: everything that the other commands need, in this folder's .venv and .sidestream-dev.
# `setup.sh python` stops after Python's packages, which is all that make test-unit needs: no root, no server.
# Each step says what it does, is skipped when it is done, and fails with one sentence.
set -euo pipefail
cd "$(dirname "$0")/.."

TOOLS=$PWD/.sidestream-dev
ONLY=${1:-}
NAME=${ONLY:+test-unit}
NAME=${NAME:-setup}
. scripts/common.sh
alone

# 1. Debian's packages
if [ -z "$ONLY" ]; then
    missing=()
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
    [ -n "${PYTHON:-}" ] || system_python >/dev/null || missing+=(python3-venv)
    if [ ${#missing[@]} -gt 0 ]; then
        command -v apt-get >/dev/null || fail "${missing[*]} is missing; install it (Debian's names), then repeat: make setup"
        [ "$(id -u)" = 0 ] || fail "${missing[*]} is missing; run as root: apt-get install ${missing[*]} (a cluster of yours is never touched), then repeat: make setup"
    fi
    if ! command -v luacheck >/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            missing+=(lua-check)
        else
            say "lua-check is missing, which make lint needs; run as root: apt-get install lua-check"
        fi
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing ${missing[*]} from Debian, without PostgreSQL's default cluster"
        # Read by Debian's postgresql-common when the package is installed: this must stand there before.
        mkdir -p /etc/postgresql-common/createcluster.d
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/sidestream.conf
        apt_lists
        DEBIAN_FRONTEND=noninteractive quietly "apt-get could not install ${missing[*]}; read its message above, then repeat: make setup" \
            apt-get "${APT_OPTIONS[@]}" install -y --no-install-recommends "${missing[@]}"
    fi
    # An environment that test-unit made with a Python in root's home serves no worker that becomes another user.
    if [ "$(id -u)" = 0 ] && [ -x .venv/bin/python ] && ! runuser -u nobody -- "$(readlink -f .venv/bin/python)" -c '' 2>/dev/null; then
        say "making .venv anew: its Python cannot be reached by other users, as the workers that root starts are"
        rm -rf .venv
    fi
fi

# 2. Python's packages, exactly the locked ones
if [ -n "${PYTHON:-}" ]; then
    can_make_venv "$PYTHON" || fail "PYTHON=$PYTHON cannot make a virtual environment; expected Python 3.11 or newer with ensurepip and venv"
    maker=("$PYTHON" -m venv)
elif python=$(any_python); then
    maker=("$python" -m venv)
elif command -v uv >/dev/null; then
    maker=(uv venv -q --seed --python '>=3.11')
else
    fail "no Python 3.11 or newer that can make a virtual environment was found; install python3-venv (Debian's name) or uv, or name one with PYTHON=/path/to/python3, then repeat: make $NAME"
fi
install_locked "$PWD/.venv" requirements/dev.lock "${maker[@]}"
[ -z "$ONLY" ] || exit 0

# 3. Redis 7.0, the oldest server that we support: unpacked here, never installed, never a service
if ! [ -x "$TOOLS/redis7/redis-server" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        say "skipping Redis 7.0: this is not Debian; the tests that need it will be skipped"
    else
        [ "$(id -u)" != 0 ] || apt_lists
        candidate=$(LC_ALL=C apt-cache policy redis-tools | sed -n 's/^ *Candidate: //p')
        case $candidate in
        5:7.0.*)
            say "unpacking Redis 7.0 from Debian into .sidestream-dev/redis7"
            work=$(mktemp -d)
            trap 'rm -rf "$work"' EXIT
            [ "$(id -u)" != 0 ] || chown _apt "$work"
            (cd "$work" && quietly "apt-get could not download redis-tools; check the network, then repeat: make setup" \
                apt-get "${APT_OPTIONS[@]}" download redis-tools liblzf1 libjemalloc2 libatomic1)
            for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
            mkdir -p "$work/redis7"
            # One program under several names; the server is what it is when it is called redis-server.
            cp "$work/root/usr/bin/redis-check-rdb" "$work/redis7/redis-server"
            find "$work/root/usr/lib" -name '*.so*' -exec cp -L {} "$work/redis7/" \;
            mkdir -p "$TOOLS"
            rm -rf "$TOOLS/redis7"
            mv "$work/redis7" "$TOOLS/redis7"
            chmod -R go+rX "$TOOLS"
            ;;
        *) say "skipping Redis 7.0: this Debian offers ${candidate:-none}; the tests that need it will be skipped" ;;
        esac
    fi
fi

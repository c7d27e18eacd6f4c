#!/usr/bin/env bash
# make setup: everything that the other commands need, in this folder's .venv and .sidestream-dev.
# Each step says what it does, is skipped when it is done, and fails with one sentence.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=/usr/bin/python3.11
POSTGRES=/usr/lib/postgresql/15/bin/initdb
TOOLS=$PWD/.sidestream-dev
NAME=setup
. scripts/common.sh
alone

# 1. Debian's packages
missing=()
[ -x "$POSTGRES" ] || missing+=(postgresql-15)
if ! [ -x "$PYTHON" ] || ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then missing+=(python3.11-venv); fi
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || fail "${missing[*]} is missing; install it (Debian 12's names), then repeat: make setup"
    [ "$(id -u)" = 0 ] || fail "${missing[*]} is missing; run as root: apt-get install ${missing[*]} (a cluster of yours is never touched), then repeat: make setup"
    say "installing ${missing[*]} from Debian, without its default cluster"
    # Read by Debian's postgresql-common when the package is installed: this must stand there before.
    mkdir -p /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/sidestream.conf
    apt_lists
    DEBIAN_FRONTEND=noninteractive quietly "apt-get could not install ${missing[*]}; read its message above, then repeat: make setup" \
        apt-get "${APT_OPTIONS[@]}" install -y --no-install-recommends "${missing[@]}"
fi

# 2. Python's packages, exactly the locked ones
wanted=$(cat requirements/dev.lock pyproject.toml | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.sidestream-setup 2>/dev/null)" != "$wanted $PWD" ]; then
    say "installing the locked Python packages into .venv"
    # A copied or moved folder's .venv names another place, an interrupted one has no pip: made anew.
    if [ "$(.venv/bin/python -c 'import pip, sys; print(sys.prefix)' 2>/dev/null || :)" != "$PWD/.venv" ]; then
        rm -rf .venv
        quietly "$PYTHON could not make .venv; see above." "$PYTHON" -m venv .venv
    fi
    quietly "pip could not install requirements/dev.lock; check the network, then repeat: make setup" \
        .venv/bin/python -m pip install --disable-pip-version-check --no-input -q --require-hashes -r requirements/dev.lock
    quietly "pip could not install this package; see above." \
        .venv/bin/python -m pip install --disable-pip-version-check --no-input -q --no-build-isolation --no-deps --no-index -e .
    echo "$wanted $PWD" >.venv/.sidestream-setup
fi

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

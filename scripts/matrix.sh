#!/usr/bin/env bash
# make test-matrix: the engine's unit, contract and integration tests on each Debian that we support, and
# docs/reference/platforms.md from what they said. A Debian that this machine is not is installed into
# .sidestream-dev/debian-SUITE with debootstrap and entered with chroot; nothing of it runs outside the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITES=(bookworm trixie)
TESTS=(tests/unit tests/contract tests/integration)
TOOLS=$PWD/.sidestream-dev
RESULTS=$TOOLS/matrix
NAME=test-matrix
. scripts/common.sh

# isolated COMMAND...: run it in a network of its own, where it sees no other server of this machine.
isolated() {
    if [ "$(id -u)" = 0 ] && command -v ip >/dev/null; then
        unshare --net bash -euc 'ip link set lo up; exec "$@"' matrix "$@"
    else
        "$@"
    fi
}

# Inside a Debian of ours: the same steps as here, as its root.
if [ "${1:-}" = inside ]; then
    servers=(redis-server)
    [ -z "$(apt-cache search --names-only '^valkey-server$')" ] || servers+=(valkey-server)
    DEBIAN_FRONTEND=noninteractive quietly "apt-get could not install ${servers[*]}; read its message above." \
        apt-get "${APT_OPTIONS[@]}" install -y --no-install-recommends "${servers[@]}" procps git patch iproute2
    scripts/setup.sh
    TEST_REDIS=$(command -v redis-server)
    TEST_VALKEY=$(command -v valkey-server || :)
    export TEST_REDIS TEST_VALKEY
    shift
    isolated "$0" run "$@"
    exit
fi

# Run the tests and write down what they said and on what.
if [ "${1:-}" = run ]; then
    suite=$2
    shift 2
    mkdir -p "$RESULTS"
    rm -f "$RESULTS/$suite".*
    .venv/bin/python scripts/platforms.py facts >"$RESULTS/$suite.json"
    exec .venv/bin/python -m pytest -q -n 2 --dist worksteal --junitxml "$RESULTS/$suite.xml" "${TESTS[@]}" "$@"
fi

here=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
scripts/setup.sh
# Lists what make setup would see in a clone: neither its environments nor its results.
files=$(mktemp)
trap 'rm -f "$files"' EXIT
git ls-files -z --cached --others --exclude-standard >"$files"

failed=()
for suite in "${SUITES[@]}"; do
    if [ "$suite" = "$here" ]; then
        say "running the tests on this machine ($suite)"
        isolated "$PWD/scripts/matrix.sh" run "$suite" "$@" || failed+=("$suite")
        continue
    fi
    [ "$(id -u)" = 0 ] || fail "$suite is entered with chroot; repeat as root: make test-matrix"
    root=$TOOLS/debian-$suite
    if ! [ -e "$root/.complete" ]; then
        if ! command -v debootstrap >/dev/null; then
            say "installing debootstrap from Debian"
            apt_lists
            DEBIAN_FRONTEND=noninteractive quietly "apt-get could not install debootstrap; read its message above." \
                apt-get "${APT_OPTIONS[@]}" install -y --no-install-recommends debootstrap
        fi
        mirror=$(debian_mirror)
        say "installing Debian's suite $suite into .sidestream-dev/debian-$suite"
        rm -rf "$root"
        quietly "debootstrap could not install $suite; read its message above, then repeat: make test-matrix" \
            debootstrap --variant=minbase --include=ca-certificates,make "$suite" "$root" "$mirror"
        # A package that is installed there starts no service.
        printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
        chmod 755 "$root/usr/sbin/policy-rc.d"
        touch "$root/.complete"
    fi
    # How this machine reaches a package index, its own certificates among it.
    for path in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        ! [ -e "$path" ] || cp -L "$path" "$root$path"
    done
    clone=$root/srv/sidestream
    mkdir -p "$clone"
    find "$clone" -mindepth 1 -maxdepth 1 ! -name .venv ! -name .sidestream-dev -exec rm -rf {} +
    tar --null --files-from="$files" --ignore-failed-read -c | tar -C "$clone" -x --no-same-owner
    chmod 755 "$root" "$root/srv" "$clone"
    say "running the tests on $suite"
    # With a process and a mount namespace of its own, whatever is left there ends with it.
    unshare --mount --pid --fork --kill-child bash -euc '
        mount -t proc proc "$1/proc"
        mount --rbind /dev "$1/dev"
        root=$1
        shift
        chroot "$root" /srv/sidestream/scripts/matrix.sh inside "$@"
    ' matrix "$root" "$suite" "$@" || failed+=("$suite")
    mkdir -p "$RESULTS"
    cp "$clone/.sidestream-dev/matrix/$suite".* "$RESULTS/"
done

if [ $# = 0 ]; then
    .venv/bin/python scripts/platforms.py page "${SUITES[@]}"
    say "wrote docs/reference/platforms.md"
fi
[ ${#failed[@]} = 0 ] || fail "the tests failed on ${failed[*]}; repeat some with: make test-matrix ARGS=\"-k NAME\""

#!/usr/bin/env bash
# make odoo: a real Odoo 19 in .sidestream-dev/odoo, from Debian's package, with the Python packages that it pins.
# Each step says what it does, is skipped when it is done, and fails with one sentence.
# ODOO_COMMAND="/path/to/python /path/to/odoo-bin" names an Odoo of yours instead; Sidestream must be installed in its Python.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=/usr/bin/python3.11
TOOLS=$PWD/.sidestream-dev
ODOO=$TOOLS/odoo
VENV=$TOOLS/odoo-venv
PACKAGES=(wkhtmltopdf poppler-utils chromium chromium-driver libjs-jquery fonts-font-awesome fonts-roboto-unhinted)
# In the folder of Odoo's Python packages, as Debian packs it.
DIST=usr/lib/python3/dist-packages

NAME=odoo
. scripts/common.sh
alone

if [ -n "${ODOO_COMMAND:-}" ]; then
    read -r -a command <<<"$ODOO_COMMAND"
    quietly "ODOO_COMMAND=$ODOO_COMMAND does not answer --version; expected \"PYTHON SCRIPT\"." "${command[@]}" --version
    version=$("${command[@]}" --version)
    [[ $version == *" 19."* ]] || fail "ODOO_COMMAND=$ODOO_COMMAND is \"$version\"; expected an Odoo 19"
    quietly "Sidestream is not installed in the Python of ODOO_COMMAND; run: ${command[0]} -m pip install -e \"$PWD[embedded]\"" \
        "${command[0]}" -c 'from sidestream.broker.redis.embedded import find_server; find_server()'
    for tool in wkhtmltopdf pdftoppm; do
        command -v "$tool" >/dev/null || fail "$tool is missing, which prints invoices or compares them; install wkhtmltopdf and poppler-utils (Debian's names)"
    done
    exit 0
fi
command -v dpkg-deb >/dev/null || fail "Odoo is unpacked from Debian's package, and this is not Debian; name yours with ODOO_COMMAND"

# 1. Debian's packages: what prints, what shows, what the web client loads
missing=()
for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || fail "${missing[*]} is missing; run as root: apt-get install ${missing[*]}, then repeat: make odoo"
    say "installing ${missing[*]} from Debian"
    apt_lists
    DEBIAN_FRONTEND=noninteractive quietly "apt-get could not install ${missing[*]}; read its message above, then repeat: make odoo" \
        apt-get "${APT_OPTIONS[@]}" install -y --no-install-recommends "${missing[@]}"
fi

# 2. Odoo 19 itself: Debian has it in its unstable suite, from which nothing is installed, only unpacked here
if ! [ -f "$ODOO/.complete" ]; then
    mirror=$(debian_mirror)
    say "unpacking Odoo 19 from Debian into .sidestream-dev/odoo"
    mkdir -p "$TOOLS"
    work=$(mktemp -d "$TOOLS/odoo-download.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work"/{lists/partial,cache/archives/partial,parts}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
    own=("${APT_OPTIONS[@]}" -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/parts"
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    quietly "Debian's package lists could not be read; check the network, then repeat: make odoo" apt-get "${own[@]}" update
    (cd "$work" && quietly "Odoo 19 could not be downloaded; check the network, then repeat: make odoo" \
        apt-get "${own[@]}" download odoo-19)
    rm -rf "$ODOO"
    mkdir -p "$ODOO"
    # Left out: a second copy of the addons that nothing reads, and translations (800 MB).
    dpkg-deb --fsys-tarfile "$work"/odoo-19_*.deb | tar -x -C "$ODOO" --no-same-owner \
        --exclude="./$DIST/addons" --exclude='*/i18n/*.po'
    # Debian's links are relative: /usr/share/javascript and the fonts are looked for beside Odoo.
    for share in javascript fonts fonts-font-awesome; do
        [ -e "$ODOO/usr/share/$share" ] || ln -s "/usr/share/$share" "$ODOO/usr/share/$share"
    done
    # A file that Debian removed and the web client's bundle still names.
    selfie=$ODOO/$DIST/odoo/addons/mail/static/lib/selfie_segmentation/selfie_segmentation.js
    if ! [ -e "$selfie" ]; then mkdir -p "$(dirname "$selfie")"; rm -f "$selfie"; echo '/* not in Debian */' >"$selfie"; fi
    chmod -R go+rX "$ODOO"
    touch "$ODOO/.complete"
fi

# 3. Python's packages: Odoo's own pins, which were resolved for Debian 12's Python, and this package beside them
install_locked "$VENV" requirements/odoo.lock "$PYTHON" -m venv
link=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/odoo-from-debian.pth
[ -e "$link" ] || echo "$ODOO/$DIST" >"$link"

#!/bin/bash
# Unpacks etcd and etcdctl from Debian packages into a directory, without installing anything or touching a service.
# usage: scripts/fetch_etcd.sh DEST
#
# Debian 12 has 3.4.23: enough for one voter, not for more (older leases may be revoked while they live, fixed in
# 3.4.38 and 3.5.23). Packages of newer releases need only a libc that Debian 12 has, so those are tried first. apt
# works on a state of its own, on the mirror that this system uses already, and checks the archive's signatures as
# always; the system's own lists, cache and packages stay as they are.
set -euo pipefail

WANTED=3.5.23
FLOOR=3.4.23
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
SUITES=(sid testing trixie-backports bookworm)

[ $# = 1 ] || { echo "usage: $0 DEST" >&2; exit 2; }
mkdir -p "$1"
DEST=$(realpath "$1")
say() { echo "fetch_etcd: $*" >&2; }

for tool in apt-get dpkg; do
    command -v $tool >/dev/null || { say "there is no $tool here"; exit 1; }
done
[ -e $KEYRING ] || { say "there is no $KEYRING: this is not Debian"; exit 1; }
MIRROR=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null | grep -v '^ *#' |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' || true)
[ -n "$MIRROR" ] || { say "apt's sources name no Debian mirror"; exit 1; }

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$WORK"/{lists/partial,archives/partial}

private_apt() {
    apt-get -q -o Dir::Etc::sourcelist="$WORK/sources" -o Dir::Etc::sourceparts=/nonexistent \
        -o Dir::State="$WORK" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$WORK" \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3 -o Acquire::Languages=none "$@" >"$WORK/log" 2>&1
}

# Leaves the unpacked files in $WORK/new and prints the version, or fails.
unpack() {
    echo "deb [signed-by=$KEYRING] $MIRROR $1 main" >"$WORK/sources"
    private_apt update || return 1
    (cd "$WORK" && rm -rf ./*.deb new && private_apt download etcd-server etcd-client) || return 1
    local package
    for package in "$WORK"/*.deb; do dpkg -x "$package" "$WORK/new" || return 1; done
    [ -x "$WORK/new/usr/bin/etcdctl" ] || return 1
    # It has to run here, not only to be there.
    "$WORK/new/usr/bin/etcd" --version | sed -n 's/^etcd Version: //p'
}

at_least() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

best=
for suite in "${SUITES[@]}"; do
    version=$(unpack "$suite") || version=
    if [ -z "$version" ]; then
        say "nothing from $suite: $(tail -n 1 "$WORK/log" 2>/dev/null || true)"
        continue
    fi
    case $version in 3.5.0 | 3.5.1 | 3.5.2) continue ;; esac
    if at_least "$version" $FLOOR && { [ -z "$best" ] || at_least "$version" "$best"; }; then
        best=$version
        rm -rf "$WORK/best"
        mv "$WORK/new" "$WORK/best"
    fi
    # 3.6 has another storage format and flags of its own; nothing here has been tried on it.
    at_least "$version" $WANTED && break
done
[ -n "$best" ] || { say "no etcd from $MIRROR"; exit 1; }
at_least "$best" $WANTED || say "only $best could be had: good for one node; a second voter needs $WANTED or newer"

# Each is renamed into its place: a node may be running the old one.
for program in "$WORK"/best/usr/bin/etcd*; do
    install -m 0755 "$program" "$DEST/.new-$(basename "$program")"
    mv "$DEST/.new-$(basename "$program")" "$DEST/$(basename "$program")"
done
say "etcd $best"

#!/bin/bash
# Downloads what the guest needs (QEMU, a kernel with control groups of version 2, virtiofsd, busybox) as Debian
# packages and unpacks them into a directory: nothing is installed, and the system's own lists and cache stay as they are.
# usage: tests/guest/fetch.sh DEST     about 60 MB to download once, 180 MB unpacked; a second run needs no network
#
# Only what this system lacks is downloaded: libraries that are installed are used from where they are.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 DEST" >&2; exit 2; }
mkdir -p "$1"
DEST=$(realpath "$1")
SELF=$(realpath "${BASH_SOURCE[0]}")
say() { echo "guest: $*" >&2; }
die() { say "$*"; exit 1; }

# One at a time: two would unpack into the same directory.
exec 9>"$DEST/lock"
flock 9
wanted=$({ cat "$SELF"; uname -m; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$DEST/stamp" 2>/dev/null || true)" != "$wanted" ] || exit 0

for tool in apt-get apt-cache dpkg; do
    command -v $tool >/dev/null || die "there is no $tool here: the guest is made of Debian 12's packages"
done
[ "$(uname -m)" = x86_64 ] || die "the guest is for x86_64; this is $(uname -m)"

WORK=$(mktemp -d "$DEST/work.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$WORK"/{lists/partial,archives/partial}

# apt with a state of its own, on the mirrors that this system uses already; signatures are checked as always.
private_apt() {
    local tool=$1
    shift
    "$tool" -q -o Dir::State="$WORK" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$WORK" \
        -o Debug::NoLocking=true -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3 \
        -o Acquire::Languages=none "$@"
}

quietly() { "$@" >"$WORK/log" 2>&1 || { cat "$WORK/log" >&2; die "failed: $*"; }; }

say "fetching QEMU and a kernel into $DEST (once, about 60 MB)"
# A source that does not answer (one of somebody else's, say) is no reason to stop: the downloads below decide.
private_apt apt-get update >"$WORK/log" 2>&1 || say "apt-get update: $(grep -m 1 '^[EW]:' "$WORK/log" || true)"
kernel=$(private_apt apt-cache depends linux-image-cloud-amd64 | grep -oE 'linux-image-[0-9][^ ]*' | head -n 1) ||
    die "apt knows no linux-image-cloud-amd64 here"
# The kernel alone: what it depends on makes an initramfs, and ours is made by boot.
(cd "$WORK/archives" && quietly private_apt apt-get download "$kernel" busybox-static kmod)
quietly private_apt apt-get -y --no-install-recommends --download-only --reinstall install qemu-system-x86 seabios

for package in "$WORK"/archives/*.deb; do dpkg -x "$package" "$WORK/tree"; done
# What is never looked at in there.
rm -rf "$WORK"/tree/usr/share/{doc,man,locale} "$WORK"/tree/lib/modules/*/kernel/{sound,drivers/{gpu,infiniband,media}}
for file in usr/bin/qemu-system-x86_64 usr/lib/qemu/virtiofsd bin/busybox bin/kmod; do
    [ -e "$WORK/tree/$file" ] || die "$file is in none of the packages: is this Debian 12?"
done
# It has to run here, not only to be there.
libraries=$(printf "$WORK/tree/%s:" usr/lib/x86_64-linux-gnu{,/pulseaudio} lib/x86_64-linux-gnu)
quietly env LD_LIBRARY_PATH="$libraries" "$WORK/tree/usr/bin/qemu-system-x86_64" --version
quietly env LD_LIBRARY_PATH="$libraries" "$WORK/tree/usr/lib/qemu/virtiofsd" --version
rm -rf "$DEST/tree"
mv "$WORK/tree" "$DEST/tree"
echo "$wanted" >"$DEST/stamp"
say "ready: $(basename "$DEST"/tree/boot/vmlinuz-*)"

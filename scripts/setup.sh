#!/bin/bash
# Makes everything that Pilfer needs to run and be tested, below .venv/, as far as it is missing.
# usage: scripts/setup.sh [--witness]     --witness: also what tests use: the independent etcd3 client, tools to attack with
# PYTHON=... chooses the interpreter of a new .venv. Each step leaves a stamp in .venv/.stamps with the fingerprint of
# what it was made from, so that a second run reads a few files and ends, without a network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# One at a time: two would install into the same environment.
exec 9<scripts/setup.sh
flock 9

STAMPS=.venv/.stamps
WITNESS=no
[ "${1:-}" = --witness ] && WITNESS=yes

say() { echo "setup: $*" >&2; }
die() { echo "setup: $*" >&2; exit 1; }
stamped() { [ -e "$STAMPS/$1" ] && [ "$(<"$STAMPS/$1")" = "$2" ]; }
stamp() { mkdir -p "$STAMPS" && echo "$2" >"$STAMPS/$1"; }

# Mirrors and indexes fail now and then; what fails three times is not a hiccup. Its output is shown then.
retry() {
    local log attempt
    log=$(mktemp)
    for attempt in 1 2 3; do
        if "$@" >"$log" 2>&1; then
            rm -f "$log"
            return 0
        fi
        if [ "$attempt" -lt 3 ]; then
            say "failed, trying again: $*"
            sleep $((attempt * 3))
        fi
    done
    cat "$log" >&2
    rm -f "$log"
    return 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    die "no Python 3.11 or newer found: install one (apt install python3), or say PYTHON=/path/to/python"
}

# Prints the Debian packages that are missing for the interpreter $1; looks for what is in them, not for their names,
# so that another system's packages, or an interpreter of one's own with its headers, count as well.
missing_packages() {
    local include system=no
    case $(readlink -f "$(command -v "$1")") in /usr/bin/*) system=yes ;; esac
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    if [ ! -e "$include/Python.h" ]; then
        [ $system = yes ] || die "$1 has no headers ($include/Python.h): install them, or say PYTHON=/usr/bin/python3"
        echo "$("$1" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')"
    fi
    if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        [ $system = yes ] || die "$1 has no ensurepip: say PYTHON=/usr/bin/python3"
        echo "$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    command -v gcc >/dev/null || echo gcc
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    [ -e /usr/include/sys/capability.h ] || echo libcap-dev
    command -v setpriv >/dev/null || echo util-linux
    command -v ip >/dev/null || echo iproute2
}

install_packages() {
    command -v apt-get >/dev/null || die "missing: $*. There is no apt here: install what these Debian packages hold"
    [ "$(id -u)" = 0 ] || die "missing: $*. Install them once as root: apt-get install $*"
    say "installing system packages: $*"
    export DEBIAN_FRONTEND=noninteractive
    # Without fresh lists the versions in them may be gone from the mirror.
    retry apt-get -q update
    retry apt-get -q install -y --no-install-recommends "$@"
}

make_environment() {
    local python packages
    python=$(find_python)
    packages=$(missing_packages "$python")
    # shellcheck disable=SC2086  (one word per package is meant)
    [ -z "$packages" ] || install_packages $packages
    if [ ! -x .venv/bin/python ] || ! is_new_enough .venv/bin/python; then
        say "making .venv with $python"
        "$python" -m venv --clear .venv
    fi
}

pip_install() { retry .venv/bin/python -m pip --disable-pip-version-check -q install --retries 5 "$@"; }

# What an installation depends on: not the settings of ruff, mypy and pytest, which come after it.
dependencies() { sed '/^\[tool\.ruff\]/,$d' pyproject.toml; }

fingerprint() { sha256sum | cut -d' ' -f1; }

install_python_packages() {
    local wanted extension
    wanted=$({ dependencies; .venv/bin/python -VV; } | fingerprint)
    extension=$({ echo "$wanted"; cat isolation/*.c isolation/*.h 2>/dev/null || true; } | fingerprint)
    if ! stamped packages "$wanted"; then
        say "installing Python packages (a minute or two)"
        # The build tools first, into the environment itself: rebuilding the C extension then needs no network.
        pip_install 'setuptools>=80'
        pip_install --no-build-isolation -e '.[dev]'
        stamp packages "$wanted"
        stamp extension "$extension"
    elif ! stamped extension "$extension"; then
        say "building the C extension"
        pip_install --no-build-isolation --no-deps -e .
        stamp extension "$extension"
    fi
}

# Good enough for one voter: 3.4.23 or newer, but not 3.5.0 to 3.5.2, which can corrupt their data.
is_good_etcd() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^etcd Version: //p') || return 1
    case $version in '' | 3.5.0 | 3.5.1 | 3.5.2) return 1 ;; esac
    [ "$(printf '%s\n' 3.4.23 "$version" | sort -V | head -n 1)" = 3.4.23 ]
}

find_etcd() {
    if [ -x .venv/bin/etcdctl ] && is_good_etcd .venv/bin/etcd; then return; fi
    if command -v etcdctl >/dev/null && is_good_etcd etcd; then return; fi
    say "unpacking etcd into .venv/bin"
    scripts/fetch_etcd.sh .venv/bin || die "without an etcd nothing runs: put etcd and etcdctl 3.4.23 or newer on PATH"
}

# etcd3 with protobuf in pure Python: its stubs are too old for the fast one. An environment of its own, since its
# messages have the same names as ours and cannot be loaded beside them.
make_witness() {
    local wanted="etcd3==0.12.0"
    stamped witness "$wanted" && return
    say "making the environment of the independent etcd client"
    # Chained: bash ignores -e in a function whose outcome is asked for.
    .venv/bin/python -m venv --clear .venv/witness &&
        retry .venv/witness/bin/python -m pip --disable-pip-version-check -q install --retries 5 "$wanted" &&
        PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python .venv/witness/bin/python -W ignore -c 'import etcd3' &&
        stamp witness "$wanted"
}

# Prints the Debian packages that are missing of what the hostile tests attack with (tests/hostile/test_tools.py).
missing_tools() {
    command -v bwrap >/dev/null || echo bubblewrap
    command -v capsh >/dev/null || echo libcap2-bin
    command -v crun >/dev/null || echo crun
    command -v stress-ng >/dev/null || echo stress-ng
    command -v strace >/dev/null || echo strace
    command -v sysctl >/dev/null || echo procps
}

# --- everything as it was? Then this is all.
everything=$({ dependencies; cat scripts/setup.sh scripts/fetch_etcd.sh isolation/*.c isolation/*.h 2>/dev/null || true; } | fingerprint)
if ! stamped everything "$everything" || ! is_new_enough .venv/bin/python; then
    make_environment
    install_python_packages
    find_etcd
    stamp everything "$everything"
elif [ ! -x .venv/bin/etcd ]; then
    find_etcd
fi
if [ $WITNESS = yes ] && ! make_witness; then
    # Not what anybody came for: its test is skipped and says so, unless REQUIRE names it.
    say "the independent etcd client could not be installed; its test will be skipped"
fi
if [ $WITNESS = yes ]; then
    mapfile -t tools < <(missing_tools)
    if [ ${#tools[@]} -gt 0 ] && ! (install_packages "${tools[@]}"); then
        say "without ${tools[*]}, the tests that attack with them will be skipped"
    fi
fi

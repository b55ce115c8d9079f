#!/bin/sh
# Install what is measured beside us, where it is missing and we may (Debian, root): programs, and asyncssh into .venv.
#
# Only a C compiler and the SSH server are needed; a contender that is missing takes no part.
set -eu

cd "$(dirname "$0")/.."
sh tests/install-services.sh

has() { command -v "$1" >/dev/null 2>&1; }
missing=""
has cc && [ -e /usr/include/stdlib.h ] || missing="$missing gcc libc6-dev"
has rclone || missing="$missing rclone"
has rsync || missing="$missing rsync"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && has apt-get; then
        echo "installing for the benchmarks:$missing …"
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086  # one word per package
        apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing >/dev/null
    else
        echo "not installed:$missing"
    fi
fi

stamp=$(cksum requirements-bench.lock)
if [ "$(cat .venv/made-from-bench 2>/dev/null)" != "$stamp" ]; then
    .venv/bin/python -m pip -qq --disable-pip-version-check --no-input install --require-hashes -r requirements-bench.lock
    echo "$stamp" >.venv/made-from-bench
fi

#!/bin/sh
# Make .venv from the lock, or leave it alone when it is up to date.
#
#   deployments/bootstrap.sh        what the application needs (requirements.lock)
#   deployments/bootstrap.sh dev    the tools and test libraries too (requirements-dev.lock)
#
# PYTHON names the interpreter; without it the first of python3.11 … python3 that is 3.11 or newer.
set -eu

cd "$(dirname "$0")/.."
kind=${1:-run}
case $kind in
    run) lock=requirements.lock ;;
    dev) lock=requirements-dev.lock ;;
    *) echo "usage: $0 [run|dev]" >&2; exit 2 ;;
esac

# What .venv was made from, kept in it: the lock (and the checkout's place, which a venv knows) for the libraries,
# pyproject.toml for the editable install of the project itself.
libraries() { pwd -P; cksum "$@"; }
project() { cksum pyproject.toml; }
run_stamp=$(libraries requirements.lock)
dev_stamp=$(libraries requirements.lock requirements-dev.lock)
project_stamp=$(project)
stamp_is() {
    [ "$(cat ".venv/made-from-$1" 2>/dev/null)" = "$2" ] && .venv/bin/python -c '' 2>/dev/null
}
pip() {
    .venv/bin/python -m pip -qq --disable-pip-version-check --no-input "$@"
}
install_project() {
    stamp_is project "$project_stamp" && return
    pip install --no-deps --no-build-isolation -e .
    echo "$project_stamp" >.venv/made-from-project
}

if stamp_is dev "$dev_stamp" || { [ "$kind" = run ] && stamp_is run "$run_stamp"; }; then
    install_project
    exit 0
fi

# --- something has to be made ---
find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}
can_make_venv() {
    python=$(find_python) && "$python" -c 'import ensurepip, venv' 2>/dev/null
}
if ! can_make_venv; then
    if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; then
        echo "installing python3-venv …"
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq update
        apt-get -qq install -y --no-install-recommends python3 python3-venv >/dev/null
    fi
    if ! can_make_venv; then
        echo "Python 3.11 or newer with venv is needed; on Debian: apt-get install python3 python3-venv" >&2
        exit 1
    fi
fi

if ! stamp_is run "$run_stamp"; then
    echo "making .venv from $lock (about a minute) …"
    "$python" -m venv --clear .venv
else
    echo "adding the development tools to .venv …"
fi
pip install --require-hashes -r "$lock"
install_project
echo "$run_stamp" >.venv/made-from-run
if [ "$kind" = dev ]; then echo "$dev_stamp" >.venv/made-from-dev; fi
echo ".venv is ready"

#!/bin/sh
# Install the servers that the tests start privately, where they are missing and we may (Debian, root).
#
# DM_TEST_POSTGRES (SQLAlchemy URL of a database that may create others) and DM_TEST_AMQP (amqp URL) name servers to
# use instead of private ones. System services are neither started nor stopped.
set -eu

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
has() { command -v "$1" >/dev/null 2>&1; }
has_postgres() { has initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }

missing=""
has sshd || missing="$missing openssh-server"
has ssh && has ssh-keygen || missing="$missing openssh-client"
has nginx || missing="$missing nginx-light"
has openssl || missing="$missing openssl"
has zstd || missing="$missing zstd" # reads bundles that we wrote
for program in zip unzip; do # make and read archives, as people do
    has $program || missing="$missing $program"
done
has bsdtar || missing="$missing libarchive-tools"
for shell in zsh fish tcsh; do # login shells of machines
    has $shell || missing="$missing $shell"
done
has chromium || missing="$missing chromium" # shows Prefect's UI
[ -n "${DM_TEST_AMQP:-}" ] || has rabbitmq-server || missing="$missing rabbitmq-server"
[ -n "${DM_TEST_POSTGRES:-}" ] || has_postgres || missing="$missing postgresql"
# a mover's clock is stepped with it; loaded into the process, so there is no program to look for
ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$missing libfaketime"
# gives a private sshd users, one for each login shell; loaded as well
ls /usr/lib/*/libnss_wrapper.so >/dev/null 2>&1 || missing="$missing libnss-wrapper"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || [ ! -e /etc/debian_version ] || ! has apt-get; then
    echo "not installed:$missing"
    echo "On Debian: apt-get install --no-install-recommends$missing"
    echo "Or name running servers: DM_TEST_POSTGRES=postgresql://user@host/db DM_TEST_AMQP=amqp://user:password@host/vhost"
    if [ -n "${CI:-}" ]; then exit 1; fi
    echo "Going on; tests that need them are skipped."
    exit 0
fi

echo "installing for the tests:$missing …"
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
made_policy=""
tidy() {
    if [ -n "$made_policy" ]; then rm -f "$policy"; fi
    rm -f "$log"
}
trap tidy EXIT
trap 'exit 130' INT TERM
if [ ! -e "$policy" ]; then # the packages' own start scripts ask it; 101: not allowed
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=1
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
# shellcheck disable=SC2086  # one word per package
if ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    exit 1
fi

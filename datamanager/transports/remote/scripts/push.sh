#!/bin/sh
# Send a file to another machine. $1: the file, $2: the offset to begin at, $3: the destination's known_hosts lines;
# then ssh's words.
#
# It ends at the end of our input (3), which the second process in the background waits for. What login scripts print at
# the destination is not passed on: our output is what ssh says.
exec 3<&0 2>&1
umask 077
f=$1
o=$2
h=$3
shift 3
p=
w=
k=$(mktemp) || exit 1
# shellcheck disable=SC2154,SC2086  # $p and $w are one number or none
trap 'kill $p $w 2>/dev/null; rm -f "$k"' EXIT
printf %s "$h" > "$k" || exit 1
set -- -o "UserKnownHostsFile=\"$k\"" "$@"
if [ "$o" = 0 ]; then
    ssh "$@" < "$f" > /dev/null &
else
    tail -c "+$((o + 1))" < "$f" | ssh "$@" > /dev/null &
fi
p=$!
{ read -r _; kill $p; } <&3 >/dev/null 2>&1 &
w=$!
wait $p
s=$?
p=
exec 2>/dev/null
[ $s = 0 ]

#!/bin/sh
# Say which programs the machine has: a line "dm-has NAME" each.
for p in openssl sha256sum curl; do
    command -v "$p" >/dev/null 2>&1 && echo "dm-has $p"
done

# a cp that knows --reflink
cp --reflink=auto --version >/dev/null 2>&1 && echo dm-has cp

# Over a regular file `head -c` may take no more than it gives out (busybox's does): the next one continues from there.
f=/etc/passwd
[ -s "$f" ] && [ "$(exec 3<"$f"; head -c 9 <&3; head -c 9 <&3)" = "$(head -c 18 <"$f")" ] && echo dm-has head
exit 0

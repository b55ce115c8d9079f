#!/bin/sh
# Hash a file while it is written. $1: the file; then the words of a program that hashes its standard input.
#
# Each line of our input says how many further bytes are stored. `head -c` of a regular file leaves the offset where it
# stopped, and can't come short of what was there before. "dm-whole" says that all of it was passed on.
exec 3<"$1" 4>&1 || exit
p=$1
shift
t=0
{
    while read -r n; do
        t=$((t + n))
        [ "$(wc -c <"$p")" -ge "$t" ] && head -c "$n" <&3 || exit
    done
    echo dm-whole >&4
} |
# What is ended is the hashing program, so its process id is said: all others end when they can't write to it.
sh -c 'echo "dm-pid $$"; exec "$@"' sh "$@"

#!/bin/sh
# Hash a file. $1: the file; then the words of a program that hashes its standard input.
#
# The file is the program's input, not its argument: sha256sum escapes odd names in what it prints.
echo "dm-pid $$"
exec <"$1"
shift
exec "$@"

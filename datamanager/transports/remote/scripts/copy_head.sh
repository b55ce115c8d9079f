#!/bin/sh
# Copy the beginning of a file. $1: how many bytes, $2: the file, $3: the new file, created exclusively.
umask 077
set -C
head -c "$1" <"$2" >"$3"

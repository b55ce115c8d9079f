#!/bin/sh
# Write what comes in to a new file. $1: the file, created exclusively.
umask 077
set -C
exec cat > "$1"

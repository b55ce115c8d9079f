#!/bin/sh
# Run a program. $@: the program and its arguments.
#
# It says its process id first, which stays the program's own: closing an SSH channel does not end one that is busy.
echo "dm-pid $$"
exec "$@"

#!/bin/sh
# Run a program on the names that come in, NUL-separated. $@: the program and its options.
exec xargs -0 "$@" 2>/dev/null

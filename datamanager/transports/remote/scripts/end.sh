#!/bin/sh
# End a program. $1: its process id. (The shell's own kill: a small machine has no other.)
kill "$1"

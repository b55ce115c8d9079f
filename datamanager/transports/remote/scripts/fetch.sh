#!/bin/sh
# Fetch a URL with curl. $1: the file, $2: its size if it is continued (0: it is created, exclusively), $3 and $4: how
# many bytes of our input are curl's configuration and the authorities to trust. A line of our input each says then
# what is to be done:
#   head      pass on the lines of the answer's next head
#   same N    say whether the next N bytes are the file's last ones
#   store N   write what follows into the file, N bytes at most; the end
#   send N    pass it on; the end
# Exit status 91: the shell, head or cmp will not do; 92: the file can't be written.
#
# Descriptors: 3 our input, 4 our output, 5 what curl brings, 6 notes of its end, 7 where curl writes. A process of its
# own passes on the lines, and ends curl at the end of our input; like curl it says its process id first.
exec 3<&0 4>&1 2>/dev/null
umask 077
f=$1
k=$2
n=$3
m=$4
t=
trap 'rm -f "$t"' EXIT

# a printf that is no builtin would have what it prints on its command line
case $(command -v printf) in */*) exit 91 ;; esac
# a head that takes more than it gives out (busybox's) would swallow some of the body
[ "$(printf abcdef | { exec 5<&0; head -c 2; printf -; cat /dev/fd/5; })" = ab-cdef ] || exit 91
command -v cmp >/dev/null || exit 91
h=
case $(curl -q --version) in *HTTP2*) h=--http1.1 ;; esac

r=$(printf '\r')
printf '\ndm-ready\n'
c=$(head -c "$n" <&3)
[ "$m" = 0 ] || { t=$(mktemp) && head -c "$m" <&3 >"$t" || exit 92; }

# curl's notes of its end come out of all this as $s
s=$( {
    {
        # the configuration, secrets and all, goes to curl by a builtin: it is on no command line and in no file
        # shellcheck disable=SC2086  # $h is one word or none
        printf %s "$c" | sh -c 'echo $$ >&7; exec "$@" >&6 3<&- 4>&-' sh curl -q $h ${t:+--cacert "$t"} --config - 7>&1
        echo $? >&6
    } | {
        read -r p
        exec 5<&0
        sh -c 'echo $$; while read -r w; do printf "%s\n" "$w"; done; kill "$1"' sh "$p" <&3 | {
            read -r w
            while read -r g a; do
                case $g in
                    head) x=
                        while IFS= read -r l <&5; do
                            printf '%s\n' "$l" >&4
                            case $l in ''|"$r") x=1; break ;; esac
                        done
                        [ "$x" ] || break ;;
                    same) if tail -c "$a" <"$f" | { exec 7<&0; head -c "$a" <&5 | cmp -s - /dev/fd/7; }; then
                            echo dm-same >&4
                        else
                            echo dm-other >&4
                            break
                        fi ;;
                    store) if [ "$k" = 0 ]; then
                            (set -C; head -c "$a" <&5 >"$f")
                        else
                            [ -f "$f" ] && [ ! -h "$f" ] && [ "$(wc -c <"$f")" -eq "$k" ] && head -c "$a" <&5 >>"$f"
                        fi || echo full >&6
                        break ;;
                    send) head -c "$a" <&5 >&4
                        break ;;
                    *) break ;;
                esac
            done
            kill "$w"
        }
    }
} 6>&1 )
rm -f "$t"
case $s in *full*) exit 92 ;; esac
printf '\000dm-end %s\n' "$s"

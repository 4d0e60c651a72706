#!/bin/sh
# HAProxy as Serve starts it: -db -f CONFIG [-dR] [-sf PID...] [-x SOCKET]
#
# Serve starts it without targets, tells it of them a little later, and begins so again after a
# kill. What it was told last is kept, and a proxy that comes back to the same ports begins with it.
# Where the port is not shared (-dR) there is no second proxy that would follow it.
config=$3
case " $* " in
*" -dR "*) ;;
*" -sf "*)
    cp "$config" "$config.new" && mv "$config.new" "$config.kept"
    ;;
*)
    if [ "$(grep bind "$config")" = "$(grep bind "$config.kept" 2>/dev/null)" ]; then
        cp "$config.kept" "$config"
    fi
    ;;
esac

# It ends with what started it: else it would hold the port after a kill of the whole service. Its
# parent is another one then at once, even while nobody has waited for the one that died.
# shellcheck disable=SC2016
sh -c '
    while grep -q "^PPid:[[:space:]]*$1\$" "/proc/$2/status"; do sleep 2; done
    grep -q -e -db "/proc/$2/cmdline" && kill "$2"
' watcher "$PPID" "$$" >/dev/null 2>&1 &

exec "$RAYSYS_HAPROXY" "$@"

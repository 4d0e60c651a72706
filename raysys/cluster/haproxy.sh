#!/bin/sh
# HAProxy as Serve starts it: -db -f CONFIG [-dR] [-sf PID...] [-x SOCKET]
#
# Serve starts it without targets, tells it of them a little later, and begins so again after a
# kill. What it was told last is kept, and a proxy that comes back to the same ports begins with it.
config=$3
case " $* " in
*" -sf "*)
    cp "$config" "$config.new" && mv "$config.new" "$config.kept"
    ;;
*)
    if [ "$(grep bind "$config")" = "$(grep bind "$config.kept" 2>/dev/null)" ]; then
        cp "$config.kept" "$config"
    fi
    ;;
esac

# It ends with what started it: else it would hold the port after a kill of the whole service.
(
    while kill -0 $PPID; do
        kill -0 $$ || exit 0
        sleep 2
    done
    kill $$
) >/dev/null 2>&1 &

exec "$RAYSYS_HAPROXY" "$@"

#!/bin/sh
# until-done COMMAND...: runs a command, and stays when it is done (exit status 0 or 3), until it is asked to end.
#
# For services with `restart: unless-stopped`, which begins what has ended again and again: that is wanted
# after a crash or a reboot, and when a disk was not mounted yet, not when a training has come to its end.
asked=""
child=""
trap 'asked=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
"$@" &
child=$!
[ -z "$asked" ] || kill -TERM "$child" 2>/dev/null # which came before there was a number
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do # the wait ended with the signal, the command goes on to save
    wait "$child"
    status=$?
done
trap - TERM INT # from here on it ends at once
case "$asked$status" in
    0 | 3)
        echo "Done, with exit status $status. This container stays until it is stopped." >&2
        exec sleep infinity
        ;;
    *) exit "$status" ;;
esac

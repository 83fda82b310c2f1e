#!/usr/bin/env bash
# Trains with several processes on one machine, one for each GPU. When a process dies, all begin again at the last
# checkpoint; when this script is told to stop, they save, and the same command goes on from there.
#
#     RECIPE=presets/pretrain_small_8gpu OUT=runs/mine NPROC=8 examples/launch/single_node.sh --data.manifest clips.csv
#
# Exit codes: 0 done; 75 stopped by SIGTERM, SIGUSR1 or SIGHUP (pre-empted: start it again); 130 stopped by Ctrl-C;
# any other: an error.
set -u

: "${RECIPE:?a recipe, see: tubelet list}" "${OUT:?the folder of the run}" "${NPROC:?processes on this machine: its GPUs}"
: "${MAX_RESTARTS:=3}"             # how often all processes begin again, by themselves, after one has died
: "${SHUTDOWN_S:=30}"              # from the signal to the end of processes that have not left: more than train.grace_s
: "${RENDEZVOUS:=--standalone}"    # options of torchrun that say where the processes meet
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}"  # torchrun would make it 1

# What the recipe cannot be read for is told once: torchrun would take it for an accident and begin again.
tubelet show "$RECIPE" "$@" > /dev/null || exit

set -m  # a process group of its own: a Ctrl-C reaches torchrun once, from here
# shellcheck disable=SC2086  # several words
torchrun $RENDEZVOUS --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS" --shutdown-timeout "$SHUTDOWN_S" \
    -m tubelet train "$RECIPE" --out "$OUT" "$@" &
launcher=$!
set +m

asked=0
stop() {  # EXIT_CODE SIGNAL
    asked=$1
    trap '' TERM USR1 HUP INT
    echo "$0: stopping; the processes have $SHUTDOWN_S s to save" >&2
    kill -s "$2" "$launcher"
}
trap 'stop 75 TERM' TERM USR1 HUP
trap 'stop 130 INT' INT

while kill -0 "$launcher" 2> /dev/null; do wait "$launcher"; done  # a signal ends a wait
wait "$launcher"
code=$?

if [ "$code" -ne 0 ] && [ "$asked" -ne 0 ]; then
    code=$asked  # torchrun exits with 1 after a signal, whatever its processes say
    echo "$0: stopped; the same command goes on from the last checkpoint" >&2
elif [ "$code" -ne 0 ]; then
    echo "$0: failed; why is said above, where a line begins with error:" >&2
fi
exit "$code"

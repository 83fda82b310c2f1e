#!/usr/bin/env bash
# Trains on several machines, one process for each GPU: start this on every one of them, with the same variables.
# OUT and the manifest are in a folder that all of them see.
#
#     NODES=2 HEAD=node-1 RECIPE=presets/pretrain_small_8gpu OUT=/shared/runs/mine NPROC=8 \
#         examples/launch/multi_node.sh --data.manifest /shared/clips.csv
#
# What it does when a process dies, when it is told to stop, and its exit codes: single_node.sh. Stop all machines;
# one that is left alone waits ten minutes for the others to come back, then it ends with an error.
set -u

: "${NODES:?how many machines}" "${HEAD:?the name or address of one of them, the same everywhere}"
: "${OUT:?the folder of the run, which all machines see}"
: "${PORT:=29400}"            # of HEAD, where they meet
: "${RUN_ID:=$(basename "$OUT")}"

# Machines may count restarts differently, so none of them may keep the addresses of an earlier attempt (pytorch#135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export RENDEZVOUS="--nnodes $NODES --rdzv-backend c10d --rdzv-endpoint $HEAD:$PORT --rdzv-id $RUN_ID"
exec "$(dirname "$0")/single_node.sh" "$@"

#!/usr/bin/env bash
# Train every algorithm on every environment with every seed, JOBS runs at a time:
#
#   ALGOS="palmer lstm" ENVS="MiniGrid-MemoryS11-v0" SEEDS="1 2 3" JOBS=2 \
#       bash scripts/sweep.sh --total-timesteps 1000000
#
# The flags go to every run. Each run has the folder runs/sweep/{algo}__{env}__s{seed}, with what it printed
# in train.log. The command can be repeated: finished runs (summary.json) are skipped, runs with a checkpoint
# are resumed, all others start from the beginning. A failed run does not stop the others; if any is
# unfinished at the end, the exit code is 1. Settings and flags with which a run could not start are refused before
# any does, with exit code 2. The table of all finished runs goes to runs/sweep/summary.csv.
#
# With DRY=1 nothing is trained: it prints a command for each run, to be handed to a cluster's queue. Each can be
# repeated like the sweep itself.
#
# Environment variables: DRY, ALGOS, ENVS, SEEDS, JOBS, SWEEP_DIR, and PYTHON (see scripts/setup_env.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
source scripts/check_settings.sh

ALGOS=${ALGOS-palmer lstm trxl}
ENVS=${ENVS-MiniGrid-MemoryS11-v0 MiniGrid-MemoryS13-v0 MiniGrid-MemoryS13Random-v0 MiniGrid-MemoryS17Random-v0}
SEEDS=${SEEDS-1 2 3 4 5}
JOBS=${JOBS-1}
SWEEP_DIR=${SWEEP_DIR:-runs/sweep}
DRY=${DRY:-0}

check_settings
[[ $DRY == [01] ]] || refuse "DRY=$DRY: must be 0 or 1"
if [[ ${1:--} != -* ]]; then
    refuse "$1: must be a flag of the training scripts"
fi
for word in "$@"; do
    case $word in
    --env-id* | --env_id* | --seed* | --run-dir* | --run_dir* | --resume*)
        refuse "$word: must not be given, as each run gets its own; use ENVS, SEEDS and SWEEP_DIR"
        ;;
    --help* | -h)
        refuse "$word: the flags are those of the training scripts, see python ppo_palmer.py --help"
        ;;
    esac
done
setup_env requirements.txt
"$PYTHON" -m scripts.check_sweep "$ALGOS" "$ENVS" "$@"
list_runs() { # one line for each run: algo env seed
    local algo env seed
    for env in $ENVS; do
        for seed in $SEEDS; do
            for algo in $ALGOS; do
                echo "$algo $env $seed"
            done
        done
    done
}

if ((DRY)); then
    while read -r algo env seed; do
        printf "cd %q && ALGOS=%s ENVS=%s SEEDS=%s JOBS=%s SWEEP_DIR=%q bash scripts/sweep.sh" \
            "$PWD" "$algo" "$env" "$seed" "$JOBS" "$SWEEP_DIR"
        (($# == 0)) || printf " %q" "$@"
        echo
    done < <(list_runs)
    exit
fi
if ! { mkdir -p "$SWEEP_DIR" && [[ -w $SWEEP_DIR ]]; } 2>/dev/null; then
    refuse "SWEEP_DIR=$SWEEP_DIR: must be a folder that can be written"
fi
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# More threads than cores slow all runs down.
export OMP_NUM_THREADS=$((cores > JOBS ? cores / JOBS : 1))
export PYTHON SWEEP_DIR

run_folder() { # algo env seed
    echo "$SWEEP_DIR/${1}__${2//\//_}__s$3"
}

run_one() { # flags of the training script ..., then algo env seed
    local algo=${*: -3:1} env=${*: -2:1} seed=${*: -1} folder start
    folder=$(run_folder "$algo" "$env" "$seed")
    if [[ -e $folder/summary.json ]]; then
        echo "finished before: $folder"
        return
    elif [[ -e $folder/checkpoint.pt ]]; then
        echo "resuming: $folder"
        start=(--resume "$folder")
    else
        echo "starting: $folder"
        rm -rf "$folder"
        mkdir -p "$folder"
        start=(--run-dir "$folder")
    fi
    if "$PYTHON" "ppo_$algo.py" --env-id "$env" --seed "$seed" "${start[@]}" "${@:1:$#-3}" \
        >>"$folder/train.log" 2>&1; then
        echo "ended: $folder"
    else
        echo "FAILED: $folder"
    fi
}
export -f run_folder run_one

list_runs | xargs -n 3 -P "$JOBS" bash -c 'run_one "$@"' run_one "$@"

if compgen -G "$SWEEP_DIR/*/summary.json" >/dev/null; then
    "$PYTHON" scripts/sweep_table.py "$SWEEP_DIR"
fi

unfinished=0
while read -r algo env seed; do
    folder=$(run_folder "$algo" "$env" "$seed")
    if [[ ! -e $folder/summary.json ]]; then
        unfinished=$((unfinished + 1))
        echo "unfinished: $folder: $(tail -n 1 "$folder/train.log" 2>/dev/null || true)" >&2
    fi
done < <(list_runs)
if ((unfinished > 0)); then
    echo "$unfinished runs are unfinished; the same command tries them again" >&2
    exit 1
fi

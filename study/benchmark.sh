#!/usr/bin/env bash
# Repeat the published experiments that are not on the scorecard (study/scorecard.py), JOBS runs at a time, one thread
# each:
#
#   bash study/benchmark.sh alone              # PALMER with the whole machine until 0.99, one run at a time
#   JOBS=2 bash study/benchmark.sh original    # the settings of the original publication, updated correctly
#   JOBS=2 bash study/benchmark.sh larger      # trained on a maze of twice the length
#   bash study/benchmark.sh generalise         # the scorecard's agents of S17Random, played on larger mazes
#
# Runs go to runs/PART/..., tables to results/PART/, where a finished one replaces the one before. The command can be
# repeated and goes on where it was cut, see scripts/sweep.sh, whose ALGOS, ENVS and SEEDS hold here too; generalise
# starts anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
source scripts/check_settings.sh

maze() { echo "MiniGrid-Memory$1-v0"; }

part=$*
algos="palmer lstm trxl" envs="$(maze S11) $(maze S13) $(maze S13Random) $(maze S17Random)" seeds="11 12 13 14 15"
case $part in
alone)
    [[ ${ALGOS-palmer} == palmer ]] || refuse "ALGOS=$ALGOS: must be palmer, which alone trains"
    algos=palmer JOBS=1 # sweep.sh gives a single run all cores
    ;;
original)
    envs="$(maze S13) $(maze S17Random)" SEEDS=${ORIGINAL_SEEDS=11}
    check_seeds ORIGINAL_SEEDS
    ;;
larger)
    envs=$(maze S33Random) SEEDS=${LARGER_SEEDS=11 12 13}
    check_seeds LARGER_SEEDS
    ;;
generalise)
    for setting in ALGOS ENVS SEEDS; do
        [[ -z ${!setting+set} ]] || refuse "$setting: must not be set, as generalise plays all agents of S17Random"
    done
    ;;
*) refuse "'$part': must be alone, original, larger or generalise" ;;
esac
if [[ $part != generalise ]]; then
    export ALGOS=${ALGOS-$algos} ENVS=${ENVS-$envs} SEEDS=${SEEDS-$seeds} JOBS=${JOBS-2}
    check_settings
fi

sweep() { # experiment, then flags of the training scripts
    local experiment=$1
    shift
    echo "== $part $experiment"
    local code=0
    SWEEP_DIR="runs/$part${experiment:+/$experiment}" bash scripts/sweep.sh "$@" || code=$?
    # A failed run is told of, and does not keep the others from running; what is refused would be refused again.
    ((code != 2)) || exit 2
    ((code == 0)) || failed=1
}

check_agents() { # checkpoints
    local checkpoint
    (($# > 0)) ||
        refuse "generalise: runs/scorecard has no agent of S17Random; python -m study.scorecard trains them"
    for checkpoint in "$@"; do
        [[ -e ${checkpoint%/*}/summary.json ]] ||
            refuse "generalise: ${checkpoint%/*} has not finished; finish it first"
    done
}

generalise() { # name of the table, then checkpoints of agents trained on S17Random
    local table=results/generalise/$1.jsonl checkpoint size
    unfinished=$table.tmp
    trap 'rm -f "$unfinished"' EXIT
    : >"$unfinished"
    play() { # size, then flags of evaluate.py; the step limit of 96 is scaled with the size
        "$PYTHON" evaluate.py --checkpoint "$checkpoint" --env-id "MiniGrid-MemoryS$1Random-v0" \
            --max-episode-steps $((96 * $1 / 17)) --episodes 300 --json "${@:2}" | tee -a "$unfinished"
    }
    for checkpoint in "${@:2}"; do
        for size in 17 21 25 33 49 65; do
            play $size
        done
        # In the largest the cue can lie further back than the Transformer has ever seen: all of it in view.
        [[ $checkpoint == *lstm* ]] || play 65 --memory-length 400
    done
    mv "$unfinished" "$table"
}

if [[ $part == generalise ]]; then
    shopt -s nullglob # a pattern that no file fits is none
    agents=(runs/scorecard/s17random/{palmer,lstm,trxl}/*/checkpoint.pt)
    # With the gate held, if that was run: does it differ where the maze is new?
    ablated=(runs/scorecard/s17random/palmer_fixed_gate/*/checkpoint.pt)
    check_agents "${agents[@]}"
    ((${#ablated[@]} == 0)) || check_agents "${ablated[@]}"
fi

setup_env requirements.txt
export PYTHON
failed=0
case $part in
alone)
    sweep "" --stop-at-success 0.99 --eval-every 0
    ;;
original)
    for algo in $ALGOS; do
        layers=() # the original's code had one LSTM layer where its table says three
        [[ $algo == trxl ]] || layers=(--lstm-layers 1)
        ALGOS=$algo sweep plain_ppo --preset report "${layers[@]}"
        ALGOS=$algo sweep with_aids --preset report "${layers[@]}" --recall-coef 2 --age-coef 0.1 --visit-bonus 0.3
    done
    ;;
larger)
    for algo in $ALGOS; do
        window=(--memory-length 192) # as long as an episode
        [[ $algo != lstm ]] || window=()
        ALGOS=$algo sweep "" --max-episode-steps 192 "${window[@]}" --num-steps 64 --total-timesteps 2000000
    done
    ;;
generalise)
    mkdir -p results/generalise
    export OMP_NUM_THREADS=1
    generalise runs "${agents[@]}"
    ((${#ablated[@]} == 0)) || generalise fixed_gate "${ablated[@]}"
    exit
    ;;
esac

"$PYTHON" -m study.collect_results "runs/$part" "results/$part" || failed=1
exit $failed

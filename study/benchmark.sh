#!/usr/bin/env bash
# Repeat the published experiments, JOBS runs at a time, one thread each:
#
#   JOBS=2 bash study/benchmark.sh main        # 3 agents x 4 mazes x 5 seeds
#   bash study/benchmark.sh alone              # PALMER with the whole machine until 0.99, one run at a time
#   JOBS=2 bash study/benchmark.sh ablations   # PALMER on two mazes, one thing changed at a time
#   JOBS=2 bash study/benchmark.sh original    # the settings of the original publication, updated correctly
#   JOBS=2 bash study/benchmark.sh larger      # trained on mazes of size 25 and 33
#   bash study/benchmark.sh generalise         # after main: trained on S17Random, played on larger mazes
#
# Runs go to runs/PART/..., tables to results/PART/, where a finished one replaces the one before. The command can be
# repeated and goes on where it was cut, see scripts/sweep.sh, whose ALGOS, ENVS and SEEDS hold here too; generalise
# starts anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

part=$*
case $part in
main | alone | ablations | original | larger | generalise) ;;
*)
    echo "error: '$part': must be main, alone, ablations, original, larger or generalise" >&2
    exit 2
    ;;
esac

export JOBS=${JOBS:-2}
export SEEDS=${SEEDS:-1 2 3 4 5}
maze() { echo "MiniGrid-Memory$1-v0"; }

sweep() { # experiment, then flags of the training scripts
    local experiment=$1
    shift
    echo "== $part $experiment"
    # A failed run is told of, and does not keep the others from running.
    SWEEP_DIR="runs/$part${experiment:+/$experiment}" bash scripts/sweep.sh "$@" || failed=1
}

check_agents() { # checkpoints
    local checkpoint
    if (($# == 0)); then
        echo "error: generalise: runs/main has no agent of S17Random; train them with bash study/benchmark.sh main" >&2
        exit 2
    fi
    for checkpoint in "$@"; do
        if [[ ! -e ${checkpoint%/*}/summary.json ]]; then
            echo "error: generalise: ${checkpoint%/*} has not finished; finish it first" >&2
            exit 2
        fi
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
    agents=(runs/main/*S17Random*/checkpoint.pt)
    # The ablations that solve S17Random, if they were run: do they differ where the maze is new?
    ablated=(runs/ablations/{fixed_gate,gate_floor,absolute_positions,relu_head}/*S17Random*/checkpoint.pt)
    check_agents "${agents[@]}"
    ((${#ablated[@]} == 0)) || check_agents "${ablated[@]}"
fi

setup_env requirements.txt
export PYTHON
failed=0
case $part in
main)
    sweep ""
    ;;
alone)
    export ALGOS=palmer JOBS=1 # sweep.sh gives a single run all cores
    sweep "" --stop-at-success 0.99 --eval-every 0
    ;;
ablations)
    export ALGOS=${ALGOS:-palmer}
    export ENVS=${ENVS:-$(maze S11) $(maze S17Random)}
    sweep no_memory --forget
    sweep no_recall --age-coef 0 --recall-coef 0
    sweep no_bonus --visit-bonus 0
    sweep plain_ppo --age-coef 0 --recall-coef 0 --visit-bonus 0
    sweep fixed_gate --fixed-gate 0.5
    sweep gate_floor --gate-floor 0.2
    sweep absolute_positions --positions absolute
    sweep relu_head --hidden relu
    ;;
original)
    export SEEDS=${ORIGINAL_SEEDS:-1}
    for algo in ${ALGOS:-palmer lstm trxl}; do
        layers=() # the original's code had one LSTM layer where its table says three
        [[ $algo == trxl ]] || layers=(--lstm-layers 1)
        ALGOS=$algo sweep plain_ppo --preset report "${layers[@]}"
        ALGOS=$algo sweep with_aids --preset report "${layers[@]}" --recall-coef 2 --visit-bonus 0.3
    done
    ;;
larger)
    export ENVS=${ENVS:-$(maze S25Random) $(maze S33Random)}
    export SEEDS=${LARGER_SEEDS:-1 2 3}
    for algo in ${ALGOS:-palmer lstm trxl}; do
        window=(--memory-length 192) # as long as an episode
        [[ $algo != lstm ]] || window=()
        ALGOS=$algo sweep "" --max-episode-steps 192 "${window[@]}" --num-steps 64 --total-timesteps 2000000
    done
    ;;
generalise)
    mkdir -p results/generalise
    export OMP_NUM_THREADS=1
    generalise runs "${agents[@]}"
    for experiment in fixed_gate gate_floor absolute_positions relu_head; do
        checkpoints=(runs/ablations/$experiment/*S17Random*/checkpoint.pt)
        if ((${#checkpoints[@]} > 0)); then
            generalise $experiment "${checkpoints[@]}"
        fi
    done
    exit
    ;;
esac

"$PYTHON" -m study.collect_results "runs/$part" "results/$part" || failed=1
exit $failed

# shellcheck shell=bash
# Sourced by sweep.sh and study/benchmark.sh: refuses, in one sentence and with exit code 2, settings with which no run
# could start.

refuse() { # sentence
    echo "error: $*" >&2
    exit 2
}

check_words() { # name of a variable that holds words, pattern of a word, what a word must be
    local words word seen=" "
    # Not split by the shell itself, which would also replace a * by the names of files.
    read -r -d '' -a words <<<"${!1}" || true
    ((${#words[@]} > 0)) || refuse "$1: is empty; must be $3"
    for word in "${words[@]}"; do
        [[ $word =~ ^($2)$ ]] || refuse "$1: $word: must be $3"
        # Two runs at once would write into the same folder.
        [[ $seen != *" $word "* ]] || refuse "$1: $word: is given twice; must be $3, each once"
        seen+="$word "
    done
}

check_seeds() { # name of the variable
    check_words "$1" '0|[1-9][0-9]{0,7}' "whole numbers from 0 to 99,999,999"
}

check_settings() { # looks at ALGOS, ENVS, SEEDS and JOBS
    local algo
    check_words ALGOS '[a-z]+' "palmer, lstm or trxl, or several of them"
    for algo in $ALGOS; do
        [[ -f ppo_$algo.py ]] || refuse "ALGOS: there is no ppo_$algo.py; use palmer, lstm or trxl"
    done
    check_words ENVS '[A-Za-z0-9_][A-Za-z0-9_.:/-]*' "ids of environments"
    check_seeds SEEDS
    [[ $JOBS =~ ^[1-9][0-9]{0,3}$ ]] || refuse "JOBS=$JOBS: must be a whole number from 1 to 9999"
}

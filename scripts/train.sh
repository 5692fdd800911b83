#!/usr/bin/env bash
# Train an agent: sets up .venv on the first call, then runs the training script in the repository root.
#
#   bash scripts/train.sh                                   PALMER with its default settings
#   bash scripts/train.sh --env-id MiniGrid-MemoryS13-v0    any flag of the script (--help lists them)
#   SCRIPT=ppo_lstm.py bash scripts/train.sh                another agent: ppo_lstm.py or ppo_trxl.py
#
# Environment variables: SCRIPT, and PYTHON (see scripts/setup_env.sh). Paths in flags are relative to the
# repository root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

SCRIPT=${SCRIPT:-ppo_palmer.py}
if [[ $SCRIPT != *.py || ! -f $SCRIPT ]]; then
    echo "error: SCRIPT=$SCRIPT: there is no such script; use ppo_palmer.py, ppo_lstm.py or ppo_trxl.py" >&2
    exit 2
fi
setup_env requirements.txt
exec "$PYTHON" "$SCRIPT" "$@"

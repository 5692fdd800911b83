#!/usr/bin/env bash
# Check the style and run the tests, JOBS at a time; arguments go to pytest: JOBS=1 bash scripts/test.sh -k checkpoint
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

setup_env requirements-dev.txt
# Networks this small gain little from a second thread, and lose much once anything else wants its core.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$PYTHON" -m ruff check
"$PYTHON" -m ruff format --check
exec "$PYTHON" -m pytest -q -n "${JOBS:-2}" --dist worksteal "$@"

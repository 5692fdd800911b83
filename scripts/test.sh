#!/usr/bin/env bash
# Check the style and run the tests; arguments go to pytest: bash scripts/test.sh -k checkpoint
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

setup_env requirements-dev.txt
"$PYTHON" -m ruff check
"$PYTHON" -m ruff format --check
exec "$PYTHON" -m pytest -q "$@"

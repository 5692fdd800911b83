# shellcheck shell=bash
# Sourced by the other scripts: `setup_env requirements.txt`, in the repository root, sets PYTHON to an
# interpreter that has these requirements.
#
# The first call makes .venv and installs into it; later calls only compare a checksum. An install that did
# not finish is made again from nothing at the next call. Set PYTHON yourself to use an environment that
# you manage (conda, a cluster's modules); nothing is then installed.
#
# On Linux, pip installs torch with its GPU libraries (gigabytes). Without a GPU this saves the download:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu bash scripts/train.sh

find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed and none was found on PATH; install it from python.org" >&2
    return 1
}

setup_env() { # requirements file
    if [[ -n ${PYTHON:-} ]]; then
        if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "error: PYTHON=$PYTHON: must be a Python of version 3.11 or newer" >&2
            return 2
        fi
        return
    fi
    PYTHON=.venv/bin/python
    local stamp=".venv/installed-$1" unfinished=.venv/install-unfinished checksum python
    checksum=$(cat requirements*.txt | cksum)
    if [[ -e $stamp && $(<"$stamp") == "$checksum" && ! -e $unfinished ]]; then
        return
    fi

    if [[ ! -x $PYTHON || -e $unfinished ]]; then
        python=$(find_python)
        echo "making .venv with $("$python" --version) ..." >&2
        rm -rf .venv
        mkdir .venv
        touch "$unfinished" # before anything is installed, and venv leaves it alone
        "$python" -m venv .venv
    fi
    touch "$unfinished"
    echo "installing $1 into .venv ..." >&2
    # Each file names what it adds to those before it.
    local file files=()
    for file in requirements.txt requirements-plots.txt requirements-study.txt requirements-export.txt \
        requirements-dev.txt; do
        files+=(-r "$file")
        if [[ $file == "$1" ]]; then break; fi
    done
    "$PYTHON" -m pip install --disable-pip-version-check "${files[@]}" >&2
    echo "$checksum" >"$stamp"
    rm "$unfinished"
}

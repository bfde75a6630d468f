#!/bin/sh
# Install PyTorch into .venv, for jobs with train.engine torch and for their tests. `make torch` calls it, after the
# setup.
#
# Run it at any time: it does nothing if .venv has a PyTorch in the range of the extra `torch` in pyproject.toml. pip
# chooses the package by its own configuration. On Linux, the one that it finds by default includes CUDA and takes about
# 3 GB; with PIP_EXTRA_INDEX_URL set to PyTorch's index for the CPU, which pytorch.org/get-started/locally names, it
# takes 160 MB. Other packages stay as requirements.lock has them. VENV=path names another environment. If something is
# missing, it ends with exit code 2 and one line on stderr.
set -eu
CDPATH='' cd -P -- "$(dirname -- "$0")/.."

venv=${VENV:-.venv}
python=$venv/bin/python
log=$venv/torch.log

report() { printf 'torch: %s\n' "$*"; }

fail() {
    printf 'torch: %s\n' "$*" >&2
    exit 2
}

# Print the requirement of the extra.
requirement() {
    "$python" -I -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["torch"])'
}

# Succeed if the installed PyTorch meets the requirement $1.
is_installed() {
    "$python" -I - "$1" <<'END'
import importlib.metadata
import sys

from packaging.requirements import Requirement

wanted = Requirement(sys.argv[1])
try:
    sys.exit(not wanted.specifier.contains(importlib.metadata.version(wanted.name)))
except importlib.metadata.PackageNotFoundError:
    sys.exit(1)
END
}

[ -x "$python" ] || fail "there is no $python: run make setup first"
wanted=$(requirement)
if is_installed "$wanted"; then
    exit 0
fi

started=$(date +%s)
: >"$log"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# Without hashes, which pip would then ask of every package.
sed -n 's/^\([a-z].*[^ ]\) *\\$/\1/p' requirements.lock >"$constraints"
report "installing $wanted (log: $log)"
report "for the build without CUDA, which is much smaller, see pytorch.org/get-started/locally and set PIP_EXTRA_INDEX_URL"
PIP_USER=0 "$python" -I -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --constraint "$constraints" "$wanted" >>"$log" 2>&1 || {
    grep -v '^ *$' "$log" | tail -n 5 | cut -c 1-200 | sed 's/^/  | /' >&2
    fail "pip failed (log: $log)"
}
"$python" -I -c 'import torch; print("torch:", torch.__version__, "for CUDA " + torch.version.cuda if torch.version.cuda else "for the CPU")' ||
    fail "PyTorch was installed but cannot be imported"
report "done in $(($(date +%s) - started)) s"

#!/bin/sh
# Create .venv, then install packages of requirements.lock and the project into it. Every `make` target calls it.
#
#   sh deploy/setup.sh           all packages
#   sh deploy/setup.sh sample    the packages of `make train`: those that the project and its extra `map` need
#
# Run it at any time: it does nothing if .venv matches requirements.lock and pyproject.toml already, it adds what a
# setup for the sample left out, and it resumes an interrupted setup. PYTHON=path names the Python 3.11 to use. If
# something is missing, it ends with exit code 2 and one line on stderr: what is missing, and how to get it.
set -eu
CDPATH='' cd -P -- "$(dirname -- "$0")/.."

venv=.venv
stamp=$venv/setup-done
lock=$venv/setup.lock
log=$venv/setup.log
part=${1:-all}

report() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 2
}

# Print the inputs of a setup of the part $1. The folder is one of them, since a .venv that was moved does not work.
inputs() {
    printf '%s\n' "$1" "$PWD"
    cksum pyproject.toml requirements.lock deploy/setup.sh
}

python_version() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

how_to_get_python='on Debian 12 and Ubuntu 22.04, apt-get install python3.11 python3.11-venv; elsewhere `uv python install 3.11` (or pyenv), then: make PYTHON="$(uv python find --system 3.11)"'

# Print the Python 3.11 to use.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        found=$(python_version "$PYTHON")
        [ "$found" = 3.11 ] || fail "PYTHON=$PYTHON is ${found:+Python }${found:-no working Python}, not Python 3.11: $how_to_get_python"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3; do
        if [ "$(python_version "$candidate")" = 3.11 ]; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 on PATH: $how_to_get_python"
}

# MXNet's wheel, for Linux on x86-64 only, includes neither libgomp nor libquadmath.
check_system() {
    missing=$("$1" - "$part" <<'END'
import platform, sys

try:
    import ensurepip, venv
except ImportError:
    print("ensurepip")
if (sys.argv[1], sys.platform, platform.machine()) == ("all", "linux", "x86_64"):
    try:
        import ctypes
    except ImportError:
        sys.exit()
    for library in ("libgomp.so.1", "libquadmath.so.0"):
        try:
            ctypes.CDLL(library)
        except OSError:
            print(library)
END
    ) || fail "$1 does not work: it cannot report what it can import"
    names=
    packages=
    for name in $missing; do
        names="${names:+$names, }$name"
        case $name in
            ensurepip) packages="$packages python3.11-venv" ;;
            libgomp.so.1) packages="$packages libgomp1" ;;
            libquadmath.so.0) packages="$packages libquadmath0" ;;
        esac
    done
    [ -z "$packages" ] || fail "missing: $names (on Debian and Ubuntu: apt-get install$packages)"
}

# Succeed if .venv has Python 3.11 and pip, and was created in this folder, which its commands name.
venv_works() {
    grep -qF "$PWD/$venv/" "$venv/bin/pip" 2>/dev/null &&
        [ "$(python_version "$venv/bin/python")" = 3.11 ] &&
        "$venv/bin/python" -I -m pip --version >/dev/null 2>&1
}

create_venv() {
    # venv --clear would empty the folder that a link leads to.
    [ ! -L "$venv" ] || fail "$PWD/$venv is a link, to what was not set up for this folder: remove the link"
    report "creating $venv with $1"
    output=$("$1" -I -m venv --clear "$venv" 2>&1) ||
        fail "$1 could not create $PWD/$venv: $(printf '%s\n' "$output" | tail -n 1)"
}

# pip writes INSTALLER last, so a package without it is incomplete and must be installed again.
remove_incomplete_packages() {
    for info in "$venv"/lib/python3.11/site-packages/*.dist-info; do
        [ -e "$info/INSTALLER" ] || rm -rf "$info"
    done
}

# Print requirements.lock or, for the sample, the packages in it that pyproject.toml names and those that were locked
# via one of them, as its comments say. pip fails if one that another one needs is not there.
locked() {
    if [ "$part" = all ]; then
        cat requirements.lock
        return
    fi
    "$venv/bin/python" -I - <<'END'
import re, tomllib
from pathlib import Path

def name(text):
    return re.sub("[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower()

pyproject = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
project = pyproject["project"]
required = pyproject["build-system"]["requires"] + project["dependencies"] + project["optional-dependencies"]["map"]
chosen = set(map(name, required))
packages = re.findall(r"^\w.*\n(?: .*\n)*", Path("requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
via = {text: set(re.findall(r"^    #(?: via|  ) ([\w.-]+)$", text, re.MULTILINE)) for text in packages}
while added := {name(text) for text in packages if via[text] & chosen} - chosen:
    chosen |= added
print(*(text for text in packages if name(text) in chosen), sep="", end="")
END
}

# Print the progress of pip every 15 seconds while this script runs.
report_progress() {
    seconds=0
    while sleep 15 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        seconds=$((seconds + 15))
        if grep -q '^Installing collected' "$log"; then
            report "  $seconds s: unpacking"
        else
            report "  $seconds s: $(grep -c '^Collecting' "$log") packages downloaded"
        fi
    done
}

pip_install() {
    report_progress &
    reporter=$!
    status=0
    PIP_USER=0 "$venv/bin/python" -I -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" \
        >>"$log" 2>&1 || status=$?
    kill "$reporter" 2>/dev/null || true
    wait "$reporter" 2>/dev/null || true
    [ "$status" = 0 ] || fail_with_log
}

fail_with_log() {
    grep -v '^ *$' "$log" | tail -n 5 | cut -c 1-200 | sed 's/^/  | /' >&2
    if grep -q 'No space left on device' "$log"; then
        fail "the disk is full: .venv needs about $needed_mb MB, and pip needs space in ${TMPDIR:-/tmp} (log: $log)"
    elif grep -q -E 'CERTIFICATE_VERIFY_FAILED|SSLError|TLS CA certificate' "$log"; then
        fail "pip could not verify a certificate: behind a proxy that intercepts TLS, set PIP_CERT to the file of its certificates (log: $log)"
    elif grep -q -E 'ConnectionError|NameResolutionError|ProxyError|TimeoutError|Connection broken|timed out|from versions: none' "$log"; then
        fail "pip could not reach its package index: check the network, or set HTTPS_PROXY or PIP_INDEX_URL, then run make again (log: $log)"
    elif grep -q 'DO NOT MATCH THE HASHES' "$log"; then
        fail "a downloaded package is not the one that requirements.lock names: it was not installed (log: $log)"
    else
        fail "pip failed (log: $log)"
    fi
}

case $part in
    all) needed_mb=3500 cost="all packages of requirements.lock into $venv (about 3 GB; the first time usually 1 to 3 minutes)" ;;
    sample) needed_mb=1200 cost="the packages for the sample into $venv (about 0.8 GB; the first time usually under a minute)" ;;
    *) fail "expected sample or nothing, but found '$part'" ;;
esac
found=$(cat "$stamp" 2>/dev/null) || true
if [ -x "$venv/bin/python" ] && { [ "$found" = "$(inputs "$part")" ] || [ "$found" = "$(inputs all)" ]; }; then
    exit 0
fi

started=$(date +%s)
if venv_works; then
    python=$venv/bin/python
else
    python=$(find_python)
    found=
fi
check_system "$python"
[ "$python" = "$venv/bin/python" ] || create_venv "$python"
rm -f "$stamp"
: >"$log"
remove_incomplete_packages
report "installing $cost"
locked >"$lock"
# Without dependencies: the lock file has all of them, and pip would take httpx[http2] for another package than httpx and
# look for its newest release, which has no hash here.
pip_install --no-compile --no-deps --require-hashes --only-binary :all: --requirement "$lock"
if [ "$part" = all ]; then
    # Before any test, which would fail for the warnings; on all cores, unlike pip. The sample imports few modules.
    report "compiling their modules"
    "$venv/bin/python" -I -m compileall -q -j 0 "$venv/lib" >>"$log" 2>&1 || true
fi
if [ "$found" != "$(inputs sample)" ]; then
    report "installing the project itself"
    pip_install --no-deps --no-build-isolation --editable .
    # Kernels that Numba compiled for other packages, or under other module names, fail to load.
    find . -name '*.nb[ci]' -path './[kt]*/__pycache__/*' -exec rm -f {} +
fi
# Otherwise the first training compiles them, and each test that runs first.
report "compiling kernels"
jobs=
[ "$part" = all ] || jobs=defaults
# shellcheck disable=SC2086
"$venv/bin/python" -I -m crossfade.precompile $jobs >>"$log" 2>&1 ||
    report "kernels were not compiled (the reason is in $log): the first training compiles them"
inputs "$part" >"$stamp"
report "done in $(($(date +%s) - started)) s"

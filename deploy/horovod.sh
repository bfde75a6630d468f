#!/bin/sh
# Build Horovod for the MXNet in .venv, with Gloo, and install it there: dense layers of jobs with several workers need
# it. `make horovod` calls it, after the setup.
#
# HOROVOD_GPU=1 builds it with NCCL too, for an MXNet with CUDA. That needs nvcc of MXNet's CUDA version in
# $HOROVOD_CUDA_HOME (/usr/local/cuda) and NCCL's headers in $HOROVOD_NCCL_HOME (/usr). docker/Dockerfile has an example.
#
# Run it at any time: it does nothing if .venv matches deploy/requirements-horovod.lock already. The wheel, which takes
# some minutes to build, is cached in $XDG_CACHE_HOME/crossfade (~/.cache/crossfade). VENV=path names another
# environment. If something is missing, it ends with exit code 2 and one line on stderr.
set -eu
CDPATH='' cd -P -- "$(dirname -- "$0")/.."

venv=${VENV:-.venv}
python=$venv/bin/python
lock=deploy/requirements-horovod.lock
stamp=$venv/horovod-done
log=$venv/horovod.log
gpu=${HOROVOD_GPU:-0}
cuda_home=${HOROVOD_CUDA_HOME:-/usr/local/cuda}

report() { printf 'horovod: %s\n' "$*"; }

fail() {
    printf 'horovod: %s\n' "$*" >&2
    exit 2
}

# Print name and version of the installed package of MXNet; nothing if there is none.
mxnet_version() {
    "$python" -I -c 'import importlib.metadata as m; print(*sorted(f"{d.name} {d.version}" for d in m.distributions() if d.name in ("mxnet", "mxnet-cu112")))'
}

# Print a key of the inputs of a wheel.
key() {
    { cat "$lock" deploy/horovod.sh; echo "$gpu"; mxnet_version; "$python" -I -c 'import sysconfig; print(sysconfig.get_platform(), sysconfig.get_config_var("SOABI"))'; } |
        cksum | tr ' ' -
}

# requirements horovod|tools|running: print the part of the lock for Horovod, for building it, or for running it.
requirements() {
    awk -v which="$1" '
        /^[a-z]/ { name = $1; sub(/==.*/, "", name) }
        which == "horovod" ? name == "horovod" : name != "horovod" && (which == "tools" || name != "cmake")
    ' "$lock"
}

run_pip() {
    PIP_USER=0 "$python" -m pip "$@" --disable-pip-version-check --no-input --progress-bar off >>"$log" 2>&1 || {
        grep -v '^ *$' "$log" | tail -n 5 | cut -c 1-200 | sed 's/^/  | /' >&2
        fail "pip failed (log: $log)"
    }
}

# Horovod creates two groups of all workers, each with listeners. Only the first uses the network interface it is given;
# the second, which sums, listens where the host's name resolves: often 127.0.1.1, or an address outside loopback.
patch_interface() {
    sed -i '/^void GlooContext::InitializeForProcessSet/,/^}/s/iface = gloo_iface_;/iface = global_context.gloo_iface_;/' "$1"
    grep -q 'iface = global_context.gloo_iface_;' "$1" || fail "cannot patch Horovod: its source is not that of the version in $lock"
}

# Build a wheel in the folder $1. The build imports MXNet, for its headers and compiler flags.
build() {
    command -v g++ >/dev/null || fail "missing: g++ (on Debian and Ubuntu: apt-get install g++)"
    command -v make >/dev/null || fail "missing: make (on Debian and Ubuntu: apt-get install make)"
    [ "$gpu" = 0 ] || [ -x "$cuda_home/bin/nvcc" ] || fail "missing: $cuda_home/bin/nvcc, which HOROVOD_GPU=1 needs: install the CUDA toolkit, or set HOROVOD_CUDA_HOME to its folder"
    requirements tools >"$1/tools.lock"
    requirements horovod >"$1/horovod.lock"
    run_pip install --target "$1/tools" --no-deps --require-hashes --only-binary :all: --requirement "$1/tools.lock"
    printf 'import numpy\nnumpy.bool = numpy.bool_\n' >"$1/tools/sitecustomize.py"
    (
        # shellcheck disable=SC2030
        export PATH="$1/tools/bin:$PATH" PYTHONPATH="$1/tools"
        export HOROVOD_WITH_MXNET=1 HOROVOD_WITH_GLOO=1 HOROVOD_CPU_OPERATIONS=GLOO
        [ "$gpu" = 0 ] || export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_CUDA_HOME="$cuda_home" HOROVOD_NCCL_HOME="${HOROVOD_NCCL_HOME:-/usr}"
        export HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1
        export MAKEFLAGS="-j$(nproc)"
        run_pip download --no-deps --require-hashes --no-build-isolation --no-binary horovod --dest "$1" \
            --requirement "$1/horovod.lock"
        tar -xzf "$1"/horovod-*.tar.gz -C "$1"
        patch_interface "$1"/horovod-*/horovod/common/gloo/gloo_context.cc
        run_pip wheel --no-deps --no-build-isolation --no-cache-dir --wheel-dir "$1/wheel" "$1"/horovod-*/
    )
}

[ -x "$python" ] || fail "there is no $python: run make setup first"
[ -n "$(mxnet_version)" ] || fail "there is no MXNet in $venv, which Horovod needs: make setup installs it on Linux x86-64"
key=$(key)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
    exit 0
fi

started=$(date +%s)
rm -f "$stamp"
: >"$log"
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/crossfade/horovod-$key
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ ! -d "$cache" ]; then
    report "building Horovod, which takes 2 to 5 minutes (log: $log)"
    build "$work"
    mkdir -p "$(dirname "$cache")"
    # Copy, then move, so that the cache never has part of a wheel. If another build was faster, keep its wheel.
    cp -R "$work/wheel" "$cache.$$"
    mv -T "$cache.$$" "$cache" 2>/dev/null || rm -rf "$cache.$$"
fi
requirements running >"$work/running.lock"
run_pip install --no-deps --require-hashes --only-binary :all: --requirement "$work/running.lock"
run_pip install --no-deps --force-reinstall "$cache"/horovod-*.whl
"$python" -I -W ignore -c 'import sys, numpy; numpy.bool = numpy.bool_; import horovod.mxnet as h; assert h.gloo_built() and h.nccl_built() >= int(sys.argv[1])' "$gpu" >>"$log" 2>&1 ||
    fail "Horovod was built but cannot be imported (log: $log)"
echo "$key" >"$stamp"
report "done in $(($(date +%s) - started)) s"

#!/bin/sh
# Check what the lock files install:
#
#   sh deploy/supply-chain.sh audit [LOCK...]    for known vulnerabilities: exit code 1 if there is one not accepted
#   sh deploy/supply-chain.sh sbom [LOCK...]     list it as CycloneDX files, build/sbom/NAME.cdx.json
#
# By default, all lock files. `audit` sends the names and versions of packages to the advisory service at $OSV_URL, by
# default that of OSV, which has the advisories of PyPA and GitHub. Where the service does not answer, it prints a line
# and ends with 0. deploy/accepted-advisories.txt has the vulnerabilities that are accepted, each with the reason.
#
# The tools are those of deploy/requirements-audit.lock, in build/audit. They need .venv.
set -eu
CDPATH='' cd -P -- "$(dirname -- "$0")/.."

tools=build/audit
lock=deploy/requirements-audit.lock
accepted=${ACCEPTED:-deploy/accepted-advisories.txt}
service=${OSV_URL:-https://api.osv.dev/v1/query}
# requests, which the tools use, gets the certificates for pip behind a proxy that intercepts TLS.
export REQUESTS_CA_BUNDLE="${REQUESTS_CA_BUNDLE:-${PIP_CERT:-}}"
[ -n "$REQUESTS_CA_BUNDLE" ] || unset REQUESTS_CA_BUNDLE

fail() {
    printf 'supply-chain: %s\n' "$*" >&2
    exit 2
}

install_tools() {
    cmp -s "$lock" "$tools/installed.lock" && return
    .venv/bin/python -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --requirement "$lock" || fail "cannot install the packages of $lock"
    cp "$lock" "$tools/installed.lock"
}

# Print why the advisory service does not answer; nothing if it does.
problem() {
    .venv/bin/python - "$service" <<'PYTHON'
import sys

import requests

query = {"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "26.0"}
try:
    requests.post(sys.argv[1], json=query, timeout=15).raise_for_status()
except requests.RequestException as error:
    print(type(error).__name__)
PYTHON
}

audit() {
    found=$(problem)
    if [ -n "$found" ]; then
        echo "supply-chain: not audited: $service does not answer ($found)"
        return
    fi
    install_tools
    ignored=$(sed -n 's/^\([A-Z][A-Za-z0-9-]*\) .*/--ignore-vuln \1/p' "$accepted")
    code=0
    for name in "$@"; do
        echo "supply-chain: $name"
        # shellcheck disable=SC2086 # several options
        "$tools/bin/pip-audit" --requirement "$name" --require-hashes --disable-pip --vulnerability-service osv \
            --osv-url "$service" --aliases on --desc off --progress-spinner off $ignored || code=1
    done
    return "$code"
}

sbom() {
    install_tools
    mkdir -p build/sbom
    for name in "$@"; do
        file=build/sbom/$(basename "$name" .lock).cdx.json
        # It warns that a lock file does not have the graph of the dependencies.
        PYTHONWARNINGS=ignore "$tools/bin/cyclonedx-py" requirements "$name" --pyproject pyproject.toml \
            --output-reproducible --output-file "$file"
        echo "$file"
    done
}

action=${1:-}
[ "$#" -eq 0 ] || shift
[ "$#" -gt 0 ] || set -- requirements.lock docker/requirements-*.lock deploy/requirements-*.lock
case $action in
    audit | sbom) "$action" "$@" ;;
    *) fail "expected audit or sbom, but found '$action'" ;;
esac

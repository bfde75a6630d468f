#!/bin/sh
# Write the secrets of docker-compose.yml, each into a volume that only the containers that need it mount. They come
# from the environment (S3_ACCESS_KEY and S3_SECRET_KEY, CROSSFADE_TOKEN, GRAFANA_PASSWORD) or are generated once.
set -eu
cd "${SECRETS:-/secrets}"

fail() {
    echo "secrets: $1" >&2
    exit 2
}

# random: print 48 hexadecimal digits.
random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# put FILE: write standard input to FILE, atomically. The file is readable by all, since user IDs differ between images;
# the volume restricts access.
put() {
    cat >"$1.new"
    chmod 0444 "$1.new"
    mv -f "$1.new" "$1"
}

# credentials ACCESS-KEY SECRET-KEY: print them as a file of AWS's.
credentials() {
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$1" "$2"
}

# identity NAME ACTIONS: print the identity of NAME/aws for s3.json.
identity() {
    printf '{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": [%s]}' "$1" \
        "$(sed -n 's/^aws_access_key_id = //p' "$1/aws")" "$(sed -n 's/^aws_secret_access_key = //p' "$1/aws")" "$2"
}

if [ -n "${S3_ACCESS_KEY:-}${S3_SECRET_KEY:-}" ]; then
    [ -n "${S3_ACCESS_KEY:-}" ] && [ -n "${S3_SECRET_KEY:-}" ] || fail "expected both S3_ACCESS_KEY and S3_SECRET_KEY, or none"
    case "$S3_ACCESS_KEY$S3_SECRET_KEY" in
    *[!A-Za-z0-9+/=_.-]*) fail "S3_ACCESS_KEY and S3_SECRET_KEY: expected letters, digits and + / = _ . - only" ;;
    esac
    credentials "$S3_ACCESS_KEY" "$S3_SECRET_KEY" | put job/aws
elif [ ! -s s3/s3.json ]; then
    rm -f job/aws view/aws
fi
for user in job view; do
    [ -s "$user/aws" ] || credentials "$(random)" "$(random)" | put "$user/aws"
done
# What answers people's requests can only read.
printf '{"identities": [%s, %s]}\n' "$(identity job '"Admin", "Read", "Write", "List", "Tagging"')" \
    "$(identity view '"Read", "List"')" | put s3/s3.json
if [ -n "${CROSSFADE_TOKEN:-}" ]; then
    printf '%s' "$CROSSFADE_TOKEN" | put job/token
elif [ ! -s job/token ]; then
    random | put job/token
fi
if [ -n "${GRAFANA_PASSWORD:-}" ]; then
    printf '%s' "$GRAFANA_PASSWORD" | put grafana/password
elif [ ! -s grafana/password ]; then
    random | put grafana/password
fi

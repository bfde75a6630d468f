#!/bin/sh
# The loader of docker-compose.yml: makes the bucket of $CROSSFADE_DATASET, if there is none, and runs there the
# command in its arguments, unless its dataset exists. "none": the dataset exists already.
set -eu
bucket=${CROSSFADE_DATASET#s3://}
python3 - "${bucket%%/*}" <<'END'
import sys

import boto3

store = boto3.client("s3")
if sys.argv[1] not in {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}:
    store.create_bucket(Bucket=sys.argv[1])
END
[ "$*" != none ] || exit 0
exec crossfade "$@" --out "$CROSSFADE_DATASET" --skip-existing

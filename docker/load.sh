#!/bin/sh
# The loader of docker-compose.yml: create the bucket of $CROSSFADE_DATASET if it is missing, then run the command in the
# arguments ('prepare ...' or 'synthesize ...'), unless the dataset is complete already. 'none' runs no command.
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

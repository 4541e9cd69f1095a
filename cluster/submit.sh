#!/usr/bin/env bash
# Runs `setbacks run CONFIG [KEY=VALUE…]` as a job of the Ray cluster at $RAY_API_SERVER_ADDRESS (default
# http://127.0.0.1:8265), with the current directory as its working directory, and follows it. Exit status 0:
# the job succeeded.
#
#   cluster/submit.sh configs/mine.yaml run_dir=/mnt/setbacks/runs/mine
#   RUNTIME_ENV=cluster/runtime_env_install.yaml cluster/submit.sh …        # if the image lacks the dependencies
#
# The job's id is a hash of the file and the values. Submitting again while the job runs only follows it;
# submitting again after it has ended resumes it under the same id.
set -euo pipefail

config=${1:?usage: cluster/submit.sh CONFIG [KEY=VALUE…]}
if [[ ! -f $config || $config == /* || $config == *..* ]]; then
  echo "$config: must be a file below the current directory, which is uploaded with the job" >&2
  exit 2
fi
export RAY_API_SERVER_ADDRESS=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
runtime_env=${RUNTIME_ENV:-$(dirname "$0")/runtime_env.yaml}
hash=$({ cat "$config" && printf '\n%s' "${@:2}"; } | sha256sum | cut -c1-8)
id=setbacks-$(basename "${config%.*}")-$hash

# Ray accepts an id only once. It deletes jobs that have ended, and refuses to delete others.
if ! ray job status "$id" &>/dev/null || ray job delete "$id" &>/dev/null; then
  ray job submit --no-wait --submission-id "$id" --entrypoint-num-cpus 1 --runtime-env "$runtime_env" \
    --working-dir . -- setbacks run "$@"
fi
ray job logs --follow "$id" || true
# `ray job submit` itself would call a stopped job a success
[[ $(ray job status "$id" 2>&1) == *"Job '$id' succeeded"* ]]

# What follows is the same for every run. The values above can be changed: it takes them from Slurm.
set -euo pipefail

stop() { # ends the driver cleanly: what is committed stays, and the next start resumes
  stopped=$1
  if [[ -n ${driver:-} ]]; then kill -TERM "$driver" 2>/dev/null || true; fi
}
stopped=
trap 'stop limit' USR1 # the time limit is near, see --signal
trap 'stop term' TERM INT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# A step does not inherit the CPUs of a task since Slurm 22.05.
step=(srun --overlap --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=none)
step+=(${SLURM_GPUS_PER_NODE:+"--gpus-per-node=$SLURM_GPUS_PER_NODE"})
address=$("${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
address=${address%% *}
# Jobs that share a node need ports of their own.
port=$((20000 + SLURM_JOB_ID % 4000 * 8))
place=$(mktemp -d "${TMPDIR:-/tmp}/setbacks.XXXXXX")
configuration > "$place/config.yaml"

# Without a token, anyone who reaches these ports could run code here.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
export RAY_TMPDIR=${RAY_TMPDIR:-/tmp/ray-$SLURM_JOB_ID}
amounts=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
ports=(--dashboard-agent-listen-port=$((port + 1)) --metrics-export-port=$((port + 2)))

"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --disable-usage-stats --include-dashboard=false --temp-dir="$RAY_TMPDIR" \
  --node-ip-address="$address" --port="$port" --ray-client-server-port=$((port + 3)) "${ports[@]}" "${amounts[@]}" &
steps=($!)
export RAY_ADDRESS=$address:$port

joined() { # how many nodes Ray's head knows
  python - <<'PYTHON' 2>/dev/null || echo 0
import os
from ray._raylet import GcsClient
print(sum(node.state == 0 for node in GcsClient(os.environ["RAY_ADDRESS"]).get_all_node_info().values()))
PYTHON
}
await() { # await N: until so many nodes have joined
  local end=$((SECONDS + 600))
  while (($(joined) < $1)); do
    if [[ -n $stopped ]]; then exit 143; fi
    for pid in "${steps[@]}"; do
      if ((SECONDS > end)) || ! kill -0 "$pid" 2>/dev/null; then
        echo "not all of ${#nodes[@]} Ray nodes have joined $RAY_ADDRESS; see the messages above" >&2
        exit 1
      fi
    done
    sleep 2
  done
}
finish() {
  kill -TERM "${steps[@]}" 2>/dev/null || true # Slurm ends what is left of them with the job
  rm -rf "$place"
}
trap finish EXIT

await 1
others=$((${#nodes[@]} - 1))
if ((others)); then
  "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" \
    ray start --block --disable-usage-stats --address="$RAY_ADDRESS" "${ports[@]}" "${amounts[@]}" &
  steps+=($!)
  await "${#nodes[@]}"
fi

setbacks run "$place/config.yaml" &
driver=$!
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do # a signal ends `wait` before the driver has ended
  code=0
  wait "$driver" || code=$?
done
if [[ $stopped == limit ]]; then
  echo "the time limit is near: the job goes on when Slurm has started it again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

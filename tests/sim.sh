#!/usr/bin/env bash
# Runs the simulator over many seeds, in as many processes as there are cores.
#
#   tests/sim.sh SEEDS [FIRST]     seeds FIRST (1) to FIRST + SEEDS - 1
#
# Prints each failing seed, cut down, with the command that runs it again. The last line counts seeds, requests and
# failures; the exit code is 0 if there were none, else 1. Stop it with Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  "" | -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "tests/${0##*/}"; exit 2 ;;
esac
seeds=$1
first=${2:-1}
case "$seeds$first" in
  *[!0-9]*) echo "tests/sim.sh: SEEDS and FIRST are numbers" >&2; exit 2 ;;
esac

scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$scratch"' EXIT
simulator=$(cargo test --locked --profile sim --test sim --no-run --message-format=json 2>"$scratch/build" |
  sed -n 's/.*"executable":"\([^"]*\)".*"name":"sim".*/\1/p; s/.*"name":"sim".*"executable":"\([^"]*\)".*/\1/p' | tail -1) ||
  { cat "$scratch/build" >&2; exit 1; }

# A process takes the next piece when it is free; pieces are small, so that all end together.
piece=$((seeds / ($(nproc) * 20)))
piece=$((piece < 10 ? 10 : piece > 500 ? 500 : piece))
run_piece() {
  local from=$1 count=$2
  "$simulator" --seeds "$count" --first "$from" --keep-going --no-repeat --no-scenes >"$scratch/$from" 2>&1 || true
  grep -a -v -e ' seeds, ' -e '^Met ' "$scratch/$from" || true
  grep -a ' seeds, ' "$scratch/$from" >>"$scratch/counts" ||
    { echo "seeds $from to $((from + count - 1)): the simulator ended without a count"; echo "0 seeds, 0 requests, 0 messages between servers, 1 failures," >>"$scratch/counts"; }
}
export -f run_piece
export simulator scratch
began=$SECONDS
for ((from = first; from < first + seeds; from += piece)); do
  left=$((first + seeds - from))
  echo "$from $((left < piece ? left : piece))"
done | xargs -P "$(nproc)" -L 1 bash -c 'run_piece "$@"' run_piece
took=$((SECONDS - began))

awk -v took="$took" '{ seeds += $1; requests += $3; for (i = 2; i <= NF; i++) if ($i ~ /^failures/) failures += $(i - 1) }
  END {
    printf "%d seeds, %d requests, %d failures (%d s, %d requests/s)\n", seeds, requests, failures, took, requests / (took ? took : 1)
    exit failures > 0
  }' "$scratch/counts"

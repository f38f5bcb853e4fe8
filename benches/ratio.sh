#!/usr/bin/env bash
# How near is Tetrachord to what the machine allows? Runs it and the ceiling prototype (examples/ceiling.rs) by turns, on the
# same disk in one sitting, and prints for each number of connections the median of both and of their ratio, and what an
# operation takes of the processors: of the servers, and of the whole machine with the load and the kernel, beside the
# ceiling's.
#
#   benches/ratio.sh                       5 rounds of 5 seconds each: about a quarter of an hour
#   benches/ratio.sh --rounds 3 --seconds 10 --shapes "put:64x1 get-one:4x64" --value-bytes 1024
#   benches/ratio.sh --durability process-crash --shapes put:64x1
#
# Both are four processes with three copies, SQLite at synchronous=FULL, an fsync before each acknowledgement (at
# process-crash: none). A shape is what is called (put at QUORUM, get-one, get-quorum), connections x calls outstanding on
# each. All keys are there when it begins, in memory. Data goes to target/ratio, which is deleted first and last.
# TETRACHORD_BIN=FOLDER takes server, stress and examples/ceiling from there and builds nothing.
#
# Figures from different sittings or machines are not to be compared; the ratio is.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

rounds=5 seconds=5 warm_up=2 keys=100000 value_bytes=100 durability=power-loss
shapes="put:1x1 put:16x1 put:64x1 put:256x1 put:4x64
  get-one:1x1 get-one:64x1 get-one:4x64 get-quorum:1x1 get-quorum:64x1 get-quorum:4x64"
first_port=19640
bin=${TETRACHORD_BIN:-${CARGO_TARGET_DIR:-target}/release}
scratch=$PWD/target/ratio
servers=() nodes=() # their processes

main() {
  parse "$@"
  [ -n "${TETRACHORD_BIN:-}" ] || cargo build --release --locked --bins --example ceiling
  trap stop EXIT
  rm -rf "$scratch"
  mkdir -p "$scratch"
  start
  echo "commands, by turns, $rounds rounds, durability $durability:"
  stress_command put C N
  echo "  ${command[*]//"$scratch/"/}"
  ceiling_command put C N
  echo "  ${command[*]//"$scratch/"/}"
  printf '\n%-18s %13s %10s %14s   %-40s   %s\n' "shape" "tetrachord/s" "ceiling/s" "ratio, median" \
    "CPU us: servers, machine, with ceiling" "bytes written: servers, ceiling"
  local shape calls
  for shape in $shapes; do
    calls=${shape#*:}
    measure "${shape%:*}" "${calls%x*}" "${calls#*x}"
  done
}

parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "benches/${0##*/}"; exit 0 ;;
      --rounds | --seconds | --warm-up | --keys | --shapes | --value-bytes | --durability)
        [ $# -gt 1 ] || refuse "$1 needs a value"
        local name=${1#--}
        printf -v "${name//-/_}" '%s' "$2"
        shift ;;
      *) refuse "unknown argument '$1'; see benches/ratio.sh --help" ;;
    esac
    shift
  done
}

refuse() {
  echo "ratio.sh: $1" >&2
  exit 2
}

# Four servers and four nodes of the ceiling; both stay up, and idle while the other is measured.
start() {
  local id promise=()
  [ "$durability" = power-loss ] || promise=(--process-crash)
  echo "durability = \"$durability\"" >"$scratch/config.toml"
  printf '127.0.0.1:%d\n' $(seq $first_port $((first_port + 3))) >"$scratch/tetrachord.txt"
  printf '127.0.0.1:%d\n' $(seq $((first_port + 4)) $((first_port + 7))) >"$scratch/ceiling.txt"
  for id in 0 1 2 3; do
    mkdir -p "$scratch/$id"
    "$bin/server" --id "$id" --nodes "$scratch/tetrachord.txt" --data "$scratch/$id" \
      --config "$scratch/config.toml" >"$scratch/$id.log" 2>&1 &
    servers+=($!)
    "$bin/examples/ceiling" serve --id "$id" --nodes "$scratch/ceiling.txt" --data "$scratch/ceiling-$id" \
      ${promise[@]+"${promise[@]}"} >"$scratch/ceiling-$id.log" 2>&1 &
    nodes+=($!)
  done
  for id in 0 1 2 3; do
    await "server $id" test -s "$scratch/$id/READY"
    await "ceiling $id" grep -qs ready "$scratch/ceiling-$id.log"
  done
  "$bin/stress" --nodes "$scratch/tetrachord.txt" --fill --keys "$keys" --value-bytes "$value_bytes" --quiet >/dev/null
  "$bin/examples/ceiling" load --nodes "$scratch/ceiling.txt" --what fill --keys "$keys" --value-bytes "$value_bytes" >/dev/null
}

await() {
  local what=$1 end=$((SECONDS + 30))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || refuse "$what did not start; see $scratch"
    sleep 0.05
  done
}

stop() {
  kill ${servers[@]+"${servers[@]}"} ${nodes[@]+"${nodes[@]}"} 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$scratch"
}

# stress_command WHAT CONNECTIONS OUTSTANDING: sets `command`.
stress_command() {
  local load=(write --level QUORUM)
  case "$1" in
    get-one) load=(read --level ONE) ;;
    get-quorum) load=(read --level QUORUM) ;;
  esac
  command=("$bin/stress" --nodes "$scratch/tetrachord.txt" --workload "${load[@]}" --keys "$keys" --value-bytes "$value_bytes"
    --connections "$2" --outstanding "$3" --seconds "$seconds" --warm-up "$warm_up" --quiet --json "$scratch/run.json")
}

# The same for the ceiling.
ceiling_command() {
  command=("$bin/examples/ceiling" load --nodes "$scratch/ceiling.txt" --what "$1" --keys "$keys" --value-bytes "$value_bytes"
    --connections "$2" --outstanding "$3" --seconds "$seconds" --warm-up "$warm_up")
}

measure() {
  local round ours ceilings cpu began busy ceiling_busy written ceiling_written
  : >"$scratch/rounds"
  for round in $(seq "$rounds"); do
    began=$(busy_us) written=$(written_by "${servers[@]}")
    stress_command "$@"
    "${command[@]}" >"$scratch/stress.out" || refuse "stress failed in round $round"
    busy=$(($(busy_us) - began)) written=$(($(written_by "${servers[@]}") - written))
    # "all" stands before the kinds, so its rate is the first.
    ours=$(sed -n 's/^ *"per_second": \([0-9.]*\),*$/\1/p' "$scratch/run.json" | head -n 1)
    cpu=$(sed -n 's/^ *"cpu_us": \([0-9.]*\),*$/\1/p' "$scratch/run.json" | head -n 1)
    began=$(busy_us) ceiling_written=$(written_by "${nodes[@]}")
    ceiling_command "$@"
    ceilings=$("${command[@]}" | sed -n 's/^\([0-9]*\) a second.*/\1/p')
    ceiling_busy=$(($(busy_us) - began)) ceiling_written=$(($(written_by "${nodes[@]}") - ceiling_written))
    echo "$ours $ceilings ${cpu:-0} $busy $ceiling_busy $written $ceiling_written" >>"$scratch/rounds"
  done
  local taken=$((seconds + warm_up))
  printf '%-18s %13.0f %10.0f %14.2f   %12.1f %12.1f %14.1f   %22.0f %8.0f\n' "$1 $2 x $3" "$(median '$1')" \
    "$(median '$2')" "$(median '$1 / $2')" "$(median '$3')" "$(median "\$4 / (\$1 * $taken)")" \
    "$(median "\$5 / (\$2 * $taken)")" "$(median "\$6 / (\$1 * $taken)")" "$(median "\$7 / (\$2 * $taken)")"
}

# For how long the processors have worked, in microseconds; what waits for the disk or is taken by the host is not work.
# 0 where the system does not say.
busy_us() {
  [ -r /proc/stat ] || { echo 0; return; }
  awk -v hz="$(getconf CLK_TCK)" '/^cpu / { printf "%.0f", ($2 + $3 + $4 + $7 + $8) * 1000000 / hz }' /proc/stat
}

# What these processes have written to the disk, in bytes; 0 where the system does not say.
written_by() {
  local pid
  for pid in "$@"; do cat "/proc/$pid/io" 2>/dev/null || true; done | awk '/^write_bytes/ { sum += $2 } END { printf "%.0f", sum }'
}

# The median over the rounds of an expression in awk's words.
median() {
  awk "{ print $1 }" "$scratch/rounds" | sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

main "$@"

#!/usr/bin/env bash
# How near is Tetrachord to what the machine allows? Runs it and the ceiling prototype (examples/ceiling.rs) by turns, on the
# same disk in one sitting, and prints for each number of connections the median of both and of their ratio.
#
#   benches/ratio.sh                       5 rounds of 5 seconds each: about 10 minutes
#   benches/ratio.sh --rounds 3 --seconds 10 --shapes "64x1 4x64" --value-bytes 1024
#
# Both are four processes with three copies, QUORUM writes, SQLite at synchronous=FULL, an fsync before each
# acknowledgement. A shape is connections x calls outstanding on each. Data goes to target/ratio, which is deleted first
# and last. TETRACHORD_BIN=FOLDER takes server, stress and examples/ceiling from there and builds nothing.
#
# Figures from different sittings or machines are not to be compared; the ratio is.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

rounds=5 seconds=5 warm_up=2 keys=100000 value_bytes=100
shapes="1x1 16x1 64x1 256x1 4x64"
first_port=19640
bin=${TETRACHORD_BIN:-${CARGO_TARGET_DIR:-target}/release}
scratch=$PWD/target/ratio
pids=()

main() {
  parse "$@"
  [ -n "${TETRACHORD_BIN:-}" ] || cargo build --release --locked --bins --example ceiling
  trap stop EXIT
  rm -rf "$scratch"
  mkdir -p "$scratch"
  start
  echo "commands, by turns, $rounds rounds:"
  echo "  $(stress_command C N | sed "s|$scratch/||g")"
  echo "  $(ceiling_command C N | sed "s|$scratch/||g")"
  printf '\n%-10s %18s %18s %16s\n' "shape" "tetrachord, put/s" "ceiling, put/s" "ratio, median"
  local shape
  for shape in $shapes; do
    measure "${shape%x*}" "${shape#*x}"
  done
}

parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
      --rounds | --seconds | --warm-up | --keys | --shapes | --value-bytes)
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
  local id
  printf '127.0.0.1:%d\n' $(seq $first_port $((first_port + 3))) >"$scratch/tetrachord.txt"
  printf '127.0.0.1:%d\n' $(seq $((first_port + 4)) $((first_port + 7))) >"$scratch/ceiling.txt"
  for id in 0 1 2 3; do
    mkdir -p "$scratch/$id"
    "$bin/server" --id "$id" --nodes "$scratch/tetrachord.txt" --data "$scratch/$id" >"$scratch/$id.log" 2>&1 &
    pids+=($!)
    "$bin/examples/ceiling" serve --id "$id" --nodes "$scratch/ceiling.txt" --data "$scratch/ceiling-$id" \
      >"$scratch/ceiling-$id.log" 2>&1 &
    pids+=($!)
  done
  for id in 0 1 2 3; do
    await "server $id" test -s "$scratch/$id/READY"
    await "ceiling $id" grep -qs ready "$scratch/ceiling-$id.log"
  done
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
  kill ${pids[@]+"${pids[@]}"} 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$scratch"
}

stress_command() {
  echo "$bin/stress --nodes $scratch/tetrachord.txt --workload write --keys $keys --value-bytes $value_bytes" \
    "--connections $1 --outstanding $2 --seconds $seconds --warm-up $warm_up --quiet --json $scratch/run.json"
}

ceiling_command() {
  echo "$bin/examples/ceiling load --nodes $scratch/ceiling.txt --keys $keys --value-bytes $value_bytes" \
    "--connections $1 --outstanding $2 --seconds $seconds --warm-up $warm_up"
}

measure() {
  local round ours ceilings
  : >"$scratch/rounds"
  for round in $(seq "$rounds"); do
    $(stress_command "$1" "$2") >"$scratch/stress.out" || refuse "stress failed in round $round"
    # "all" stands before the kinds, so its rate is the first.
    ours=$(sed -n 's/^ *"per_second": \([0-9.]*\),*$/\1/p' "$scratch/run.json" | head -n 1)
    ceilings=$($(ceiling_command "$1" "$2") | sed -n 's/^\([0-9]*\) a second.*/\1/p')
    echo "$ours $ceilings" >>"$scratch/rounds"
  done
  printf '%-10s %18.0f %18.0f %16.2f\n' "$1 x $2" "$(median '$1')" "$(median '$2')" "$(median '$1 / $2')"
}

# The median over the rounds of an expression in awk's words.
median() {
  awk "{ print $1 }" "$scratch/rounds" | sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

main "$@"

#!/usr/bin/env bash
# How cost grows: QUORUM puts and gets a second against one size after the other, all else being equal.
#
#   benches/curves.sh keys          10,000 to 10,000,000 keys (far beyond the memtables)
#   benches/curves.sh values        values of 10 bytes to 1 MB
#   benches/curves.sh connections   1 to 1,000 connections, a call at a time on each
#   benches/curves.sh servers       4 to 16 servers, three copies of each key
#   benches/curves.sh all           one after the other
#
# --seconds N (5: of each point)   --most N (10000000 keys)   --out FOLDER (target/curves)
#
# Writes PART.csv and PART.svg to the folder, and prints the table. Elsewhere 100,000 keys of 16 bytes (of values above 1 kB as
# many as make 100 MB), values of 100 bytes, 64 connections (16 for values of 1 MB), four servers. Load and servers share
# the machine. Data goes to target/curves-data, which is deleted first and last. TETRACHORD_BIN=FOLDER takes the programs
# from there and builds nothing.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

keys=100000 most=10000000 seconds=5 out=target/curves
first_port=19720
bin=${TETRACHORD_BIN:-${CARGO_TARGET_DIR:-target}/release}
scratch=$PWD/target/curves-data
parts="keys values connections servers"
options="most seconds out"
. benches/cluster.sh

# ------------------------------------------------------------------------------------------------ the parts

keys() {
  cluster
  table keys
  for keys in 10000 100000 1000000 10000000; do
    [ "$keys" -gt "$most" ] && continue
    fill
    point "$keys" --value-bytes 100
  done
  keys=100000
  draw keys "keys"
  say "puts with the most keys: $(awk -F, '$1 == 100000 { base = $2 } { last = $2 } END { printf "%.2f", last / base }' "$out/keys.csv") of those with 100,000"
}

values() {
  local bytes
  table "bytes of a value"
  for bytes in 10 100 1000 10000 100000 1000000; do
    keys=$((bytes > 1000 ? 100000000 / bytes : 100000))
    cluster
    fill --value-bytes "$bytes"
    # 64 MB at once fill the queues of the logs on a slow disk, and what is refused makes no figure.
    if [ "$bytes" -lt 1000000 ]; then
      point "$bytes" --value-bytes "$bytes"
    else
      point "$bytes" --value-bytes "$bytes" --connections 16
    fi
  done
  keys=100000
  draw values "bytes of a value"
}

connections() {
  local connections
  cluster
  fill
  table connections
  for connections in 1 4 16 64 256 1000; do
    point "$connections" --connections "$connections"
  done
  draw connections "connections"
}

servers() {
  table servers
  for servers in 4 6 8 12 16; do
    cluster
    fill
    point "$servers"
  done
  servers=4
  draw servers "servers"
}

# ------------------------------------------------------------------------------------------------ tables and pictures

table() {
  mkdir -p "$out"
  : >"$scratch.csv"
  printf '%-18s %12s %12s %12s %12s\n' "$1" "puts/s" "p99, ms" "gets/s" "p99, ms"
}

# point X OPTIONS: one line of the table.
point() {
  local x=$1 puts put_p99 gets
  shift
  run --workload write --level QUORUM --seconds "$seconds" "$@"
  puts=$(rate) put_p99=$(latency p99)
  run --workload read --level QUORUM --seconds "$seconds" "$@"
  gets=$(rate)
  printf '%-18s %12s %12s %12s %12s\n' "$x" "$puts" "$put_p99" "$gets" "$(latency p99)"
  echo "$x,$puts,$put_p99,$gets,$(latency p99)" >>"$scratch.csv"
}

# draw PART LABEL
draw() {
  { echo "$1,puts a second,put p99 ms,gets a second,get p99 ms"; cat "$scratch.csv"; } >"$out/$1.csv"
  rm -f "$scratch.csv"
  awk -v label="$2" -f benches/curve.awk "$out/$1.csv" >"$out/$1.svg"
  say "$out/$1.svg"
}

main "$@"

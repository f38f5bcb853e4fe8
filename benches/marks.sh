#!/usr/bin/env bash
# What a cluster of four does when much is asked of it, or something is wrong.
#
#   benches/marks.sh stall      at half of the highest rate: latencies, and the worst while memtables are flushed; then the
#                               same of the ceiling (examples/ceiling.rs), which flushes nothing, to tell what is the machine's
#   benches/marks.sh dead       puts at QUORUM with one server dead, against four; then the same of the ceiling, to tell what
#                               follows from needing both of two replicas instead of two of three
#   benches/marks.sh drain      a million hints handed to a server that returns, while clients go on
#   benches/marks.sh recover    a server starts with a million rows in its log, and with none
#   benches/marks.sh memory     of an idle server, and of each cell in the memtable
#   benches/marks.sh large      gets and puts of data ten times larger than memtable and cache together
#   benches/marks.sh sustained  the same of 10,000,000 keys and servers as they are, against 100,000; puts for ten minutes
#   benches/marks.sh all        one after the other
#
# --keys N (1000000)   --seconds N (20: of one measurement)   --rounds N (3)   --bytes N (100: of a value of large)
#
# Each part prints what it saw, with PASS or FAIL against its mark; the exit code is 1 if one was missed, 2 for wrong use.
# Ratios are of one run; figures of different machines are not to be compared. Data goes to target/marks, which is deleted
# first and last. TETRACHORD_BIN=FOLDER takes the programs from there and builds nothing.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

keys=1000000 seconds=20 rounds=3 bytes=100
first_port=19680
bin=${TETRACHORD_BIN:-${CARGO_TARGET_DIR:-target}/release}
scratch=$PWD/target/marks
parts="stall dead drain recover memory large sustained"
options="keys seconds rounds bytes"
. benches/cluster.sh

# ------------------------------------------------------------------------------------------------ the parts

stall() {
  cluster
  fill
  run --workload write --seconds 10
  local half=$(($(rate) / 2))
  run --workload write --rate "$half" --seconds "$((seconds * 3))"
  say "puts at QUORUM, 64 connections, $half a second for $((seconds * 3)) s: $(latencies)"
  say "memtables flushed meanwhile, all servers: $(($(stat 0 flushes) + $(stat 1 flushes) + $(stat 2 flushes) + $(stat 3 flushes)))"
  check "p99 below 5 ms" below "$(latency p99)" 5
  check "p99.9 below 15 ms" below "$(latency p999)" 15
  check "no stall above 50 ms" below "$(latency max)" 50
  ceiling
  say "the ceiling at $half a second: $("$bin/examples/ceiling" load --nodes "$nodes" --keys "$keys" --rate "$half" --seconds "$seconds")"
}

# Its nodes, filled, in place of the servers; all, or those with a smaller number than the one that is dead.
ceiling() {
  local dead=${1:-} id
  [ -n "${TETRACHORD_BIN:-}" ] || cargo build --release --locked --example ceiling
  fresh
  for ((id = 0; id < ${dead:-$servers}; id++)); do
    "$bin/examples/ceiling" serve --id "$id" --nodes "$nodes" --data "$scratch/$id" ${dead:+--dead "$dead"} \
      >"$scratch/$id.log" 2>&1 &
    pids[$id]=$!
  done
  for ((id = 0; id < ${dead:-$servers}; id++)); do started "$id" grep -qs ready "$scratch/$id.log"; done
  "$bin/examples/ceiling" load --nodes "$nodes" --what fill --keys "$keys" ${dead:+--without "$dead"} >/dev/null
}

dead() {
  cluster
  keys=100000
  fill
  local round four=() three=()
  for round in $(seq "$rounds"); do
    run --workload write --seconds "$seconds" --server "$(others 3)"
    four+=("$(rate)")
    crash 3
    sleep 2
    run --workload write --seconds "$seconds" --server "$(others 3)"
    three+=("$(rate)")
    serve 3
    ready 3
    until_no_hints 120
  done
  say "puts at QUORUM through three servers, 64 connections: with four servers ${four[*]}, with one of them dead ${three[*]} a second"
  check "not lower with one dead" below "$(sorted "${four[@]}" | quantile 0.5)" "$(sorted "${three[@]}" | quantile 0.5) + 1"
  four=() three=()
  for round in $(seq "$rounds"); do
    ceiling
    four+=("$(ceiling_rate)")
    ceiling 3
    three+=("$(ceiling_rate)")
  done
  say "the ceiling: with four nodes ${four[*]}, with one of them dead ${three[*]} a second"
}

# Puts through all nodes but the last.
ceiling_rate() {
  "$bin/examples/ceiling" load --nodes "$nodes" --keys "$keys" --seconds "$seconds" --without 3 | sed 's/ .*//'
}

# Three of four keys have a replica on server 3.
drain() {
  cluster "hint_bytes_per_node_max = 1000000000"
  fill
  local before during
  run --workload write --server "$(others 3)" --seconds "$seconds"
  before=$(rate)
  crash 3
  stress --server "$(others 3)" --workload write --order sequential --keys $((keys * 4 / 3)) --operations $((keys * 4 / 3)) \
    --warm-up 0 >/dev/null
  local hints=$(($(stat 0 hints) + $(stat 1 hints) + $(stat 2 hints)))
  serve 3
  ready 3
  local began took
  began=$(now)
  load --workload write --server "$(others 3)" --warm-up 0 --seconds 300 --csv "$scratch/load.csv"
  until_no_hints 300
  took=$(awk "BEGIN { printf \"%.1f\", ($(now) - $began) / 1000000 }")
  unload
  during=$(awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next } { n++; sum += $column["operations_per_second"] }
    END { printf "%.0f", n ? sum / n : 0 }' "$scratch/load.csv")
  say "$hints hints handed over in $took s; clients put $before a second before, $during meanwhile"
  check "a million within 30 s" below "$took * 1000000 / $hints" 30
  check "clients slowed by less than a third" below "$before * 2 / 3" "$during"
}

recover() {
  cluster "memtable_bytes_max = 4000000000" "log_bytes_max = 8000000000"
  local id began empty
  crash 3
  rm -rf "${scratch:?}/3"
  began=$(now)
  serve 3
  until [ -s "$scratch/3/READY" ]; do sleep 0.005; done
  empty=$(awk "BEGIN { printf \"%.0f\", ($(now) - $began) / 1000 }")
  say "an empty server is ready after $empty ms"
  check "below 100 ms" below "$empty" 100
  keys=$((keys * 4 / 3))
  fill
  for id in 0 1 2 3; do crash "$id"; done
  serve 0
  ready 0
  say "$(grep -o 'replayed [1-9].*' "$scratch/0.log" | tail -n 1)"
  check "a million rows within 2 s" below "$(grep -o 'replayed [1-9].*' "$scratch/0.log" | tail -n 1 |
    sed 's/replayed \([0-9]*\) rows of the commit log in \([0-9.]*\) s.*/\2 * 1000000 \/ \1/')" 2
}

memory() {
  cluster "memtable_bytes_max = 4000000000" "log_bytes_max = 8000000000"
  sleep 2
  local idle own full cells
  idle=$(memory_of 0 Rss)
  own=$(memory_of 0 Pss)
  fill
  sleep 2
  full=$(memory_of 0 Rss)
  cells=$(stat 0 memtable_cells)
  say "an idle server $((idle / 1024)) MiB resident, $((own / 1024)) MiB without the others' part of the program itself"
  say "with $cells cells of 116 bytes in the memtable $((full / 1024)) MiB"
  check "idle below 15 MB, the program itself counted once" below "$own * 1024" 15000000
  check "below 210 bytes a cell" below "($full - $idle) * 1024 / $cells" 210
}

large() {
  local what near far
  for what in "read uniform 0.5" "read zipfian 0.8" "write uniform 0.7"; do
    set -- $what
    cluster
    keys=$((100000 * 116 / (16 + bytes)))
    fill --value-bytes "$bytes"
    run --workload "$1" --order "$2" --seconds "$seconds" --value-bytes "$bytes"
    near=$(rate)
    # Three quarters of 480,000 cells of 116 bytes on each server, or fewer of longer ones: ten times two memtables, the
    # cells read lately, and a cache of pages, of 1 MB each. What the operating system's cache holds of data.db is beside that.
    cluster "memtable_bytes_max = 1000000" "cell_cache_bytes = 1000000" "base_cache_bytes = 1000000"
    keys=$((480000 * 116 / (16 + bytes)))
    fill --value-bytes "$bytes"
    run --workload "$1" --order "$2" --seconds "$seconds" --value-bytes "$bytes"
    far=$(rate)
    say "$1, $2: $near a second from memory, $far with data ten times larger than that ($keys keys," \
      "data.db of $(du -m "$scratch/0/data.db" | cut -f 1) MiB)"
    check "at least $3 of it" below "$near * $3" "$far"
  done
}

# On each server 7,500,000 cells, about 1 GB in data.db, behind two memtables of 128 MiB and caches of 32.
sustained() {
  local many=$((keys * 10)) near
  cluster
  keys=100000
  fill
  gets_and_puts "$seconds"
  near=("${rates[@]}")
  cluster
  keys=$many
  fill
  gets_and_puts "$((seconds * 30))"
  say "puts of $keys for $((seconds * 30)) s: $(latencies)"
  say "memory of a server: $(($(memory_of 0 Rss) / 1024)) MiB, of which of its own $(($(memory_of 0 Anonymous) / 1024))"
  say "of 100000 keys and of $keys, a second: gets, uniform ${near[0]} and ${rates[0]}; gets, zipfian ${near[1]} and ${rates[1]};" \
    "puts ${near[2]} and ${rates[2]}"
  check "uniform gets at least 0.5 of it" below "${near[0]} * 0.5" "${rates[0]}"
  check "zipfian gets at least 0.8 of it" below "${near[1]} * 0.8" "${rates[1]}"
  check "puts at least 0.7 of it" below "${near[2]} * 0.7" "${rates[2]}"
}

# Uniform gets, zipfian gets, and puts for so many seconds; sets `rates`.
gets_and_puts() {
  run --workload read --order uniform --seconds "$seconds"
  rates=("$(rate)")
  run --workload read --order zipfian --seconds "$seconds"
  rates+=("$(rate)")
  run --workload write --seconds "$1"
  rates+=("$(rate)")
}

# ------------------------------------------------------------------------------------------------ what is seen

latencies() {
  echo "p50 $(latency p50) ms, p99 $(latency p99), p99.9 $(latency p999), max $(latency max)"
}

until_no_hints() {
  local end=$((SECONDS + $1))
  while [ $(($(stat 0 hints) + $(stat 1 hints) + $(stat 2 hints) + $(stat 3 hints))) -gt 0 ]; do
    [ "$SECONDS" -lt "$end" ] || refuse "hints are left after $1 s"
    sleep 0.2
  done
}

# In KiB; of what several servers share, Pss counts each one's part.
memory_of() {
  awk -v name="$2:" '$1 == name { print $2 }' "/proc/${pids[$1]}/smaps_rollup"
}

sorted() {
  printf '%s\n' "$@" | sort -n
}

main "$@"

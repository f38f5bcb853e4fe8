#!/usr/bin/env bash
# Do replicas end up equal, and do deletes stay deleted? Four server processes of its own, faults, and what was seen.
#
#   benches/reconcile.sh equal        kill -9 of any servers under load; then, without a read, all equal within 30 s
#   benches/reconcile.sh absent       a server away for longer than the hint window and past the cap catches up
#   benches/reconcile.sh lost-disk    an empty directory under QUORUM load: time to refill, what clients feel of it
#   benches/reconcile.sh deletes      every key deleted: the space comes back; not while one is away; not with an old copy
#   benches/reconcile.sh overhead     nothing to repair: what it costs puts
#   benches/reconcile.sh idle         the same: what it costs a server without clients
#   benches/reconcile.sh all          one after the other
#
# --keys N (1000000)   --seconds N (20: how long faults or load go on)   --seed N (1: draws the kills)   --rounds N (20)
#
# Each part prints PASS or FAIL; the exit code is 1 if one failed, 2 for wrong use. Data goes to target/reconcile, which is
# deleted first and last. TETRACHORD_BIN=FOLDER takes server, client, stress and inspector from there and builds nothing.
# With 1,000,000 keys allow some minutes for each part and 2 GB of disk.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

keys=1000000 seconds=20 seed=1 rounds=20 burst=4
first_port=19660
bin=${TETRACHORD_BIN:-${CARGO_TARGET_DIR:-target}/release}
scratch=$PWD/target/reconcile
parts="equal absent lost-disk deletes overhead idle"
options="keys seconds seed rounds"
. benches/cluster.sh

# ------------------------------------------------------------------------------------------------ the parts

# Kills are drawn from the seed: one to four servers at once, and for how long.
equal() {
  local all=$keys count
  for count in 256 "$all"; do
    keys=$count
    cluster "read_repair = false"
    fill
    say "$keys keys, mixed load at ONE for $seconds s, kill -9 drawn from --seed $seed"
    load --workload mixed --level ONE --seconds "$seconds" --seed "$seed"
    RANDOM=$seed
    local end=$((SECONDS + seconds)) kills=0 id
    while [ "$SECONDS" -lt "$end" ]; do
      sleep "0.$((RANDOM % 9))"
      local victims=$((RANDOM % 15 + 1))
      for id in 0 1 2 3; do
        [ $((victims >> id & 1)) = 0 ] || { crash "$id"; kills=$((kills + 1)); }
      done
      sleep "$((RANDOM % 2)).$((RANDOM % 9))"
      for id in 0 1 2 3; do
        [ $((victims >> id & 1)) = 0 ] || serve "$id"
      done
      for id in 0 1 2 3; do ready "$id"; done
    done
    unload
    local since took
    since=$(mark)
    say "$kills kills; faults and load have ended"
    took=$(until_equal "$since" 120)
    say "no read since: every range proven equal up to then after $took s"
    check "equal within 30 s" below "$took" 30
    check "the inspector finds no difference" inspect
    stop
  done
  keys=$all
}

absent() {
  cluster "read_repair = false" "hint_window_s = 2" "hint_bytes_per_node_max = 1000000"
  fill
  until_equal 0 120 >/dev/null
  say "server 2 is killed; 3 s later half of the keys are put again at QUORUM"
  crash 2
  sleep 3
  stress --server "$(others 2)" --workload write --order sequential --keys "$keys" --operations $((keys / 2)) --warm-up 0 >/dev/null
  check "no more hints are kept for it" is_true "$(status 0 | count '"hinting":false')"
  serve 2
  ready 2
  local since took
  since=$(mark)
  took=$(until_equal "$since" 300)
  say "it is back; every range proven equal after $took s, $(stat 2 reconcile_cells_received) cells got"
  check "equal" below "$took" 120
  check "the inspector finds no difference" inspect
}

lost_disk() {
  cluster
  fill
  until_equal 0 120 >/dev/null
  local n
  for n in $(seq 50); do echo "put kept-$n value-$n ALL"; done | client 3 >/dev/null
  say "mixed load, QUORUM, 64 connections; after $seconds s server 3 is killed and its directory deleted"
  load --workload mixed --level QUORUM --seconds $((seconds * 3 + 220)) --csv "$scratch/load.csv"
  sleep "$seconds"
  crash 3
  rm -rf "${scratch:?}/3"
  serve 3
  ready 3
  local began=$SECONDS asked=0 found=0 shown
  while shown=$(status 3 | grep -o '"refilling":"[^"]\+"' | head -n 1) && [ $((SECONDS - began)) -lt 200 ]; do
    [ $(((SECONDS - began) % 5)) != 0 ] || say "$((SECONDS - began)) s: $shown"
    asked=$((asked + 50))
    found=$((found + $(for n in $(seq 50); do echo "get kept-$n ONE"; done | client 3 | count 'value-')))
    sleep 1
  done
  local took=$((SECONDS - began))
  sleep "$seconds"
  unload
  check "its log says that it lacks what it once had" grep -q 'lacks what it once had' "$scratch/3.log"
  grep -o 'it has got back all.*' "$scratch/3.log" || true
  say "reads at ONE through it meanwhile: $found of $asked found"
  check "what it had not got back was never shown as missing" test "$found" = "$asked"
  check "refilled under load within three minutes (took $took s)" below "$took" 180
  felt 2 "$seconds" "before"
  felt $((seconds + 3)) $((seconds + 3 + took)) "while it was refilled"
  felt $((seconds + 3 + took)) $((seconds * 2 + took)) "after"
  took=$(until_equal "$(mark)" 120)
  say "load ended; every range proven equal after $took s"
  check "equal" below "$took" 30
  check "the inspector finds no difference" inspect
}

# Operations a second and the median of the seconds' p99, from one second of the load to another.
felt() {
  awk -F, -v from="$1" -v upto="$2" -v what="$3" '
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
    $1 >= from && $1 < upto { n++; rate += $column["operations_per_second"]; p99[n] = $column["p99_us"] / 1000 }
    END { for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (p99[j] < p99[i]) { t = p99[i]; p99[i] = p99[j]; p99[j] = t }
      if (n) printf "   %-22s %8.0f operations/s   p99 %7.2f ms   (%d s)\n", what, rate / n, p99[int((n + 1) / 2)], n }
  ' "$scratch/load.csv"
}

deletes() {
  cluster
  fill
  until_equal 0 120 >/dev/null
  crash 1
  cp -a "$scratch/1" "$scratch/old-copy"
  serve 1
  ready 1
  crash 2
  say "$keys keys, on disk: $(disk). Server 2 is killed, every key deleted"
  stress --server "$(others 2)" --workload remove --order sequential --keys "$keys" --operations "$keys" --warm-up 0 >/dev/null
  sleep 45
  say "45 s later: $(disk); $(dead 0) dead cells on server 0"
  check "deletions stay while server 2 is away" is_true "$(dead 0)"
  status 0 | grep -o '"uncollected":"[^"]\+"' | sort -u || true
  check "and the reason is named" is_true "$(status 0 | count '"uncollected":"[^"]*server 2')"
  serve 2
  ready 2
  local began=$SECONDS
  until [ "$(($(dead 0) + $(dead 1) + $(dead 2) + $(dead 3)))" = 0 ] && [ "$(data_kib)" -lt "$((keys / 40 + 8000))" ] ||
    [ $((SECONDS - began)) -gt 240 ]; do sleep 2; done
  say "server 2 is back; after $((SECONDS - began)) s on disk: $(disk)"
  check "the space was given back within minutes" below "$(data_kib)" "$((keys / 40 + 8000))"
  check "every key is gone" inspect_none
  say "server 1 gets its directory of before the deletions back"
  crash 1
  rm -rf "${scratch:?}/1"
  mv "$scratch/old-copy" "$scratch/1"
  serve 1
  ready 1
  local took
  took=$(until_equal "$(mark)" 300)
  say "every range proven equal after $took s"
  grep -o 'lacks what it once had' "$scratch/1.log" || true
  check "nothing came back" inspect_none
}

# Two clusters at once, one with reconciliation and one without, that get the same load by turns: a machine that gets slower
# or faster must not count for one of the two.
overhead() {
  local all=$scratch port=$first_port round on off costs cost side
  both=() both_scratch=$scratch # for the trap, wherever it ends
  trap 'pids+=(${both[@]+"${both[@]}"}); scratch=$both_scratch; stop' EXIT
  for side in on off; do
    scratch=$all/$side nodes=$all/$side/nodes.txt pids=()
    cluster "reconciliation = $([ "$side" = on ] && echo true || echo false)"
    stress --fill --keys 100000 --outstanding 4 >/dev/null
    both+=("${pids[@]}")
    first_port=$((first_port + 10)) # the next cluster's
  done
  scratch=$all nodes=$all/nodes.txt first_port=$port pids=("${both[@]}") both=()
  say "two clusters with 100000 keys; a minute's rest"
  sleep 60
  for round in $(seq "$rounds"); do
    [ $((round % 2)) = 0 ] || on=$(put_rate on)
    off=$(put_rate off)
    [ $((round % 2)) = 1 ] || on=$(put_rate on)
    echo "$on $off" >>"$scratch/rounds"
    say "round $round: on $on put/s, off $off put/s"
  done
  costs=$(awk '{ print 100 * (1 - $1 / $2) }' "$scratch/rounds" | sort -n)
  cost=$(echo "$costs" | quantile 0.5)
  say "median of the rounds: $cost % fewer puts; the middle half of them from $(echo "$costs" | quantile 0.25) to $(echo "$costs" | quantile 0.75) %"
  check "below 3 %" below "$cost" 3
}

idle() {
  local share without
  idle_share false
  without=$share
  idle_share true
  say "the busiest server, idle, $keys keys in the cluster: $share % of a processor; without reconciliation $without %"
  check "the difference is below 1 %" below "$share - $without" 1
}

# Puts a second of keys that are there already, all replicas up.
put_rate() {
  "$bin/stress" --nodes "$scratch/$1/nodes.txt" --workload write --keys 100000 --seconds "$burst" --warm-up 1 --quiet \
    --json "$scratch/run.json" >/dev/null
  rate
}

# Sets `share`: what the busiest server takes of a processor over a minute, one minute after the keys were written.
idle_share() {
  cluster "reconciliation = $1"
  fill
  sleep 60
  local id before=() after
  for id in 0 1 2 3; do before[id]=$(ticks "$id"); done
  sleep 60
  share=0
  for id in 0 1 2 3; do
    after=$(awk "BEGIN { print ($(ticks "$id") - ${before[id]}) * 100 / $(getconf CLK_TCK) / 60 }")
    below "$after" "$share" || share=$after
  done
}

# ------------------------------------------------------------------------------------------------ what is seen

# Dead cells that a server keeps.
dead() {
  status "$1" | grep -o '"deadCells":[0-9]*' | awk -F: '{ sum += $2 } END { print sum + 0 }'
}

# Seconds until every replica says of every range that it is proven equal up to the stamp or later; waits for `limit`.
until_equal() {
  local since=$1 limit=$2 began id proven
  began=$(now)
  while true; do
    proven=0
    for id in 0 1 2 3; do
      proven=$((proven + $(status "$id" | grep -o '"notNow":"[^"]*","owner":[0-9]*,"provenAt":[0-9]*,"provenUpto":[0-9]*' |
        awk -F'[:,"]+' -v since="$since" '$2 == "notNow" && $3 == "owner" && $NF >= since { n++ } END { print n + 0 }')))
    done
    [ "$proven" -lt 12 ] && awk "BEGIN { exit !($(now) - $began < $limit * 1000000) }" || break
    sleep 0.2
  done
  awk "BEGIN { printf \"%.1f\", ($(now) - $began) / 1000000 }"
}

# The stamp of a put that all replicas have: proven equal up to it means that nothing before it is missing.
mark() {
  "$bin/client" --nodes "$nodes" --json -e "put marker x ALL" | sed -n 's/.*"stamp":\([0-9]*\).*/\1/p'
}

inspect() {
  "$bin/inspector" --nodes "$nodes" --timeout-ms 30000 >"$scratch/inspector.out" 2>&1
  local code=$?
  grep -E '^(proven|range|consistent|stray)' "$scratch/inspector.out" | cut -c1-150
  return $code
}

# Nothing but the marker.
inspect_none() {
  "$bin/client" --nodes "$nodes" -e "del marker ALL" >/dev/null
  if ! inspect || ! grep -q '^consistent: 0 of 0' "$scratch/inspector.out"; then
    head -n 6 "$scratch/inspector.out" | cut -c 1-200
    return 1
  fi
}

disk() {
  echo "$(du -cksm "$scratch"/[0-3] | awk '{ printf "%s%s", sep, $1; sep = " " }') MB (servers 0 to 3, sum)," \
    "of that data.db $(($(data_kib) / 1024)) MB"
}

# Without the log, whose files keep their size and are used again.
data_kib() {
  du -cks "$scratch"/[0-3]/data.db | awk 'END { print $1 }'
}

main "$@"

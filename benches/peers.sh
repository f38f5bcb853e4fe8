#!/usr/bin/env bash
# Tetrachord beside stores of others: by turns, in one sitting, on the same disk, with the same promise. Before a write is
# answered, two of its three copies have been through an fsync.
#
#   benches/peers.sh etcd       three members; gets linearizable, against gets at QUORUM
#   benches/peers.sh redis      a primary and two replicas: appendfsync always, WAIT 1 after each SET; gets from the
#                               primary, which asks nobody, against gets at ONE
#   benches/peers.sh all        one after the other
#
# --keys N (100000)   --seconds N (4: of one measurement, after one to warm up)   --rounds N (3)
#
# Prints for each number of connections, one call at a time on each, the medians and the median ratio. Takes etcd and
# redis-server from the PATH (in Debian: etcd-server, redis-server). Data goes to target/peers, which is deleted first and
# last. TETRACHORD_BIN=FOLDER takes server, client, stress and examples/peers from there and builds nothing.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

keys=100000 seconds=4 rounds=3
first_port=19760
bin=${TETRACHORD_BIN:-${CARGO_TARGET_DIR:-target}/release}
scratch=$PWD/target/peers
parts="etcd redis"
options="keys seconds rounds"
. benches/cluster.sh

# ------------------------------------------------------------------------------------------------ the peers

etcd() {
  begin etcd
  local id members=
  for id in 0 1 2; do members+=",n$id=http://127.0.0.1:$((first_port + 23 + id))"; done
  for id in 0 1 2; do
    peer "$id" "$program" --name "n$id" --data-dir "$scratch/peer-$id" --initial-cluster "${members:1}" \
      --listen-client-urls "http://127.0.0.1:$((first_port + 20 + id))" \
      --advertise-client-urls "http://127.0.0.1:$((first_port + 20 + id))" \
      --listen-peer-urls "http://127.0.0.1:$((first_port + 23 + id))" \
      --initial-advertise-peer-urls "http://127.0.0.1:$((first_port + 23 + id))" \
      --heartbeat-interval 200 --election-timeout 3000 # a busy machine is no lost leader
  done
  started peer-0 filled
  say "$("$program" --version | head -n 1)"
  compare put QUORUM 1 16 64
  at_least 4 "puts on 64 connections"
  compare get QUORUM 64
}

redis() {
  begin redis-server
  local id
  for id in 0 1 2; do
    peer "$id" "$program" --port "$((first_port + 20 + id))" --bind 127.0.0.1 --dir "$scratch/peer-$id" --save "" \
      --appendonly yes --appendfsync always --repl-diskless-sync-delay 0 \
      $([ "$id" = 0 ] || echo --replicaof 127.0.0.1 $((first_port + 20)))
  done
  addresses=127.0.0.1:$((first_port + 20))
  started peer-0 filled
  say "$("$program" --version | cut -d' ' -f 1-3)"
  compare put QUORUM 1 16 64
  at_least 1 "puts on 64 connections"
  compare get ONE 64
}

# ------------------------------------------------------------------------------------------------ how

# Servers with all keys.
begin() {
  program=$(type -P "$1") || refuse "there is no $1 on the PATH"
  [ -n "${TETRACHORD_BIN:-}" ] || cargo build --release --locked --example peers
  cluster
  fill
  store=${1%-server}
  addresses=127.0.0.1:$((first_port + 20)),127.0.0.1:$((first_port + 21)),127.0.0.1:$((first_port + 22))
}

# peer ID COMMAND: both stay up, and idle while the other is measured.
peer() {
  local id=$1
  shift
  mkdir -p "$scratch/peer-$id"
  "$@" >"$scratch/peer-$id.log" 2>&1 &
  pids[$((servers + id))]=$!
}

filled() {
  ask --what fill >/dev/null 2>"$scratch/fill.log"
}

ask() {
  "$bin/examples/peers" --store "$store" --addresses "$addresses" --keys "$keys" "$@"
}

# compare put|get LEVEL CONNECTIONS...: the last ratio stays in `ratio`.
compare() {
  local what=$1 level=$2 workload=write connections round theirs
  shift 2
  [ "$what" = put ] || workload=read
  for connections in "$@"; do
    : >"$scratch/rounds"
    for round in $(seq "$rounds"); do
      run --workload "$workload" --level "$level" --connections "$connections" --seconds "$seconds" --warm-up 1
      theirs=$(ask --what "$what" --connections "$connections" --seconds "$seconds" --warm-up 1) ||
        refuse "$store failed; see $scratch"
      echo "$(rate) ${theirs%% *} $(latency p99) $(sed 's/.*p99 \([0-9.]*\).*/\1/' <<<"$theirs")" >>"$scratch/rounds"
    done
    ratio=$(printf '%.2f' "$(median '$1 / $2')")
    say "$what, $connections connections: $(median '$1') a second at $level (p99 $(median '$3') ms)," \
      "$store $(median '$2') (p99 $(median '$4') ms): $ratio of it"
  done
}

# The median over the rounds of an expression in awk's words.
median() {
  awk "{ print $1 }" "$scratch/rounds" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

at_least() {
  check "at least $1 times the $2 of $store" below "$1" "$ratio"
}

main "$@"

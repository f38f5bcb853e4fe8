# Servers of its own for a measurement, faults for them, and what can be seen of them. For the scripts beside this file,
# which set:
#
#   bin          folder of the programs        keys   how many there are
#   first_port   of the servers                parts  of the script, each a function (lost-disk is lost_disk)
#   servers      how many (4)
#   scratch      folder for data, deleted first and last (KEEP=1 in the environment: kept)
#   options      names of variables that --NAME VALUE sets

nodes=$scratch/nodes.txt
servers=4
pids=() load=0 failed=0

main() {
  parse "$@"
  [ -n "${TETRACHORD_BIN:-}" ] || cargo build --release --locked --bins
  trap stop EXIT
  local part all=$keys
  for part in $asked; do
    keys=$all # which a part may change
    echo "== $part, $keys keys"
    "${part/-/_}"
    stop
  done
  exit "$failed"
}

# Sets `asked`, the parts to run, and the options.
parse() {
  asked=
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
      all) asked=$parts ;;
      --*)
        among "${1#--}" "$options" || refuse "unknown option '$1'; see $0 --help"
        [ $# -gt 1 ] || refuse "$1 needs a value"
        printf -v "${1#--}" '%s' "$2"
        shift ;;
      *)
        among "$1" "$parts" || refuse "unknown part '$1'; see $0 --help"
        asked="$asked $1" ;;
    esac
    shift
  done
  [ -n "$asked" ] || refuse "which part? see $0 --help"
}

# True if the word is one of the list.
among() {
  [[ " $2 " == *" $1 "* ]]
}

refuse() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

# ------------------------------------------------------------------------------------------------ servers

# New servers with these lines of configuration.
cluster() {
  fresh
  local id
  printf '%s\n' "$@" >"$scratch/config.toml"
  for ((id = 0; id < servers; id++)); do serve "$id"; done
  for ((id = 0; id < servers; id++)); do ready "$id"; done
}

# Nothing runs and nothing is there but the addresses.
fresh() {
  stop
  mkdir -p "$scratch"
  printf '127.0.0.1:%d\n' $(seq "$first_port" $((first_port + servers - 1))) >"$nodes"
}

serve() {
  mkdir -p "$scratch/$1"
  rm -f "$scratch/$1/READY"
  "$bin/server" --id "$1" --nodes "$nodes" --data "$scratch/$1" --config "$scratch/config.toml" >>"$scratch/$1.log" 2>&1 &
  pids[$1]=$!
}

ready() {
  started "$1" test -s "$scratch/$1/READY"
}

# started ID COMMAND: waits until the command says so.
started() {
  local id=$1 end=$((SECONDS + 60))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || refuse "server $id did not start; see $scratch/$id.log"
    sleep 0.05
  done
}

crash() {
  kill -9 "${pids[$1]}"
  wait "${pids[$1]}" 2>/dev/null || true
  unset "pids[$1]" # its number may be another process's by now
  rm -f "$scratch/$1/READY"
}

stop() {
  [ "$load" = 0 ] || pids+=("$load")
  if [ ${#pids[@]} -gt 0 ]; then
    kill -9 "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
  fi
  pids=() load=0
  [ -n "${KEEP:-}" ] || rm -rf "$scratch"
}

fill() {
  stress --fill --keys "$keys" --outstanding 4 "$@" >/dev/null
}

stress() {
  "$bin/stress" --nodes "$nodes" --quiet "$@"
}

# Of the run that --json wrote: all operations a second.
rate() {
  sed -n 's/^ *"per_second": \([0-9]*\).*/\1/p' "$scratch/run.json" | head -n 1
}

# The servers but this one, for a load that shall have no errors while it is away.
others() {
  sed "$(($1 + 1))d" "$nodes" | paste -sd,
}

load() {
  "$bin/stress" --nodes "$nodes" --quiet --keys "$keys" --allow-errors "$@" >"$scratch/load.out" 2>&1 &
  load=$!
}

# A load that is measured: what it saw is in run.json.
run() {
  stress --keys "$keys" --json "$scratch/run.json" "$@" >"$scratch/run.out" 2>&1 || refuse "stress failed: $(tail -n 3 "$scratch/run.out")"
}

# Of all operations of the run, in milliseconds.
latency() {
  sed -n "s/^ *\"$1_us\": \([0-9.]*\),*\$/\1/p" "$scratch/run.json" | head -n 1 | awk '{ print $1 / 1000 }'
}

# Lets the load end early.
unload() {
  kill -INT "$load" 2>/dev/null || true
  wait "$load" 2>/dev/null || true
  load=0
}

# ------------------------------------------------------------------------------------------------ what is seen

client() {
  "$bin/client" --nodes "$nodes" "$1" 2>/dev/null || true
}

status() {
  "$bin/client" --nodes "$nodes" --json -e status "$1" 2>/dev/null || true
}

# A counter; what never happened is not listed.
stat() {
  "$bin/client" --nodes "$nodes" -e stats "$1" | awk -v name="$2" '
    $1 == name { gsub(/,/, "", $2); value = $2 }
    END { print value + 0 }'
}

ticks() {
  awk '{ print $14 + $15 }' "/proc/${pids[$1]}/stat"
}

now() {
  date +%s%6N
}

# Of sorted lines.
quantile() {
  awk -v part="$1" '{ v[NR] = $1 } END { printf "%.1f", v[int((NR - 1) * part + 1.5)] }'
}

count() {
  grep -c "$1" || true
}

below() {
  awk "BEGIN { exit !($1 < $2) }"
}

is_true() {
  [ "${1:-0}" -gt 0 ]
}

say() {
  echo "   $*"
}

# What has to be so, and the command that says whether it is.
check() {
  local what=$1
  shift
  if "$@"; then
    echo "   PASS  $what"
  else
    echo "   FAIL  $what"
    failed=1
  fi
}

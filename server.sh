#!/usr/bin/env bash
# Builds Tetrachord if need be and starts the servers of nodes.txt that are on this machine and do not run yet.
#
#   ./server.sh                   four servers on 127.0.0.1:9000 to 9003 if there is no nodes.txt yet
#   ./server.sh --config FILE     further arguments are passed on to every server that it starts
#
# Returns when every server is ready; they go on running. Logs: data/<id>/server.log. Stop: ./terminate_servers.sh
# Exit code 0 when all are ready, 2 when something is in the way, or all of them run already; then nothing that it started
# keeps running.
#
# TETRACHORD_BIN=FOLDER takes the binaries from there and builds nothing.
set -euo pipefail
export LC_ALL=C
caller=$PWD
cd "$(dirname "$0")"

bin=${CARGO_TARGET_DIR:-target}/release
stop_deadline_s=10
say_waiting_after_s=5

# Line i of nodes.txt is server i.
hosts=() ports=()
local_ids=()
# Lines "id pid" of those that run already, and the ids of the others.
running="" absent_ids=()
# What this script started, in the order of `absent_ids`: processes, and how long each log was before.
pids=() log_starts=()

main() {
  local arguments=()
  [ -z "${TETRACHORD_BIN:-}" ] || bin=$(absolute "$TETRACHORD_BIN")
  parse "$@"
  [ -e nodes.txt ] || write_nodes
  read_nodes
  find_running
  refuse_if_ports_are_taken
  build

  local began
  began=$(now_us)
  trap 'exit 130' INT TERM
  trap stop_started EXIT # whatever ends it: nothing it started keeps running
  start_all
  await_all
  trap - INT TERM EXIT
  await_running
  local took_ms=$((($(now_us) - began) / 1000)) others=""
  [ -z "$running" ] || others=", beside $(count_servers $((${#local_ids[@]} - ${#absent_ids[@]})))"
  printf '%s ready in %d.%d s%s. Console: %s   State: %s   Stop: ./terminate_servers.sh\n' "$(count_servers ${#absent_ids[@]})" \
    $((took_ms / 1000)) $((took_ms % 1000 / 100)) "$others" "$bin/client" "$bin/inspector"
}

refuse() {
  printf 'server.sh: %s\n' "$@" >&2
  exit 2
}

count_servers() {
  if [ "$1" = 1 ]; then echo "1 server"; else echo "$1 servers"; fi
}

now_us() {
  local now=${EPOCHREALTIME:-}
  if [ -n "$now" ]; then echo "${now/./}"; else echo "$(date +%s)000000"; fi
}

# ------------------------------------------------------------------------------------------------ what is asked

# Fills `arguments`: what every server it starts gets. A file's name means what it meant where the script was called.
parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "./${0##*/}"; exit 0 ;;
      --config) [ $# -gt 1 ] || refuse "--config needs a file"; arguments+=(--config "$(absolute "$2")"); shift ;;
      --config=*) arguments+=(--config "$(absolute "${1#--config=}")") ;;
      --nodes* | --data* | --id* | --print-config | [0-9]*)
        refuse "'$1' is for one server: $bin/server --help; this script takes its servers from nodes.txt" ;;
      *) arguments+=("$1") ;;
    esac
    shift
  done
}

absolute() {
  case "$1" in
    /*) echo "$1" ;;
    *) echo "$caller/$1" ;;
  esac
}

write_nodes() {
  {
    echo "# The servers of the cluster, one host:port per line; line i is server i, counted from 0. The order is the order"
    echo "# on the ring: once there is data, addresses may change but neither order nor count."
    printf '127.0.0.1:%d\n' 9000 9001 9002 9003
  } >nodes.txt
  echo "nodes.txt written: four servers on 127.0.0.1:9000 to 9003" >&2
}

read_nodes() {
  local line entry number=0 id
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=${line%$'\r'} # as written on Windows
    read -r entry <<<"${line%%#*}" || true
    [ -n "$entry" ] || continue
    [[ $entry =~ ^(.+):([0-9]{1,5})$ ]] || refuse "nodes.txt line $number: '$entry' is not host:port"
    hosts+=("${BASH_REMATCH[1]}")
    ports+=("${BASH_REMATCH[2]}")
  done <nodes.txt
  [ ${#hosts[@]} -gt 0 ] || refuse "nodes.txt names no server; write one host:port per line"

  for id in "${!hosts[@]}"; do
    if is_local "${hosts[$id]}"; then
      local_ids+=("$id")
    else
      echo "server $id  ${hosts[$id]}:${ports[$id]} is on another machine: run ./server.sh there" >&2
    fi
  done
  [ ${#local_ids[@]} -gt 0 ] || refuse "no line of nodes.txt is on this machine (its addresses: $(own_addresses))"
}

is_local() {
  local host=${1#[} address
  host=${host%]}
  case "$host" in
    127.* | localhost | ::1 | 0.0.0.0 | ::) return 0 ;;
    "${HOSTNAME:-}" | "${HOSTNAME%%.*}") return 0 ;;
  esac
  for address in "$host" $(getent ahosts "$host" 2>/dev/null | cut -d' ' -f1 | sort -u); do
    case " $(own_addresses) " in
      *" $address "*) return 0 ;;
    esac
    [ "$address" = "$host" ] || [[ $address != 127.* ]] || return 0
  done
  return 1
}

# On one line, separated by blanks.
own_addresses() {
  if hostname -I >/dev/null 2>&1; then
    echo "127.0.0.1 $(hostname -I)"
  elif command -v ip >/dev/null; then
    ip -o addr | while read -r _ _ _ address _; do printf '%s ' "${address%%/*}"; done
  else
    echo "127.0.0.1"
  fi
}

# ------------------------------------------------------------------------------------------------ what is in the way

# What runs already is left alone, unless that is all, or not what nodes.txt says.
find_running() {
  local id pid
  running=$(./terminate_servers.sh --list)
  for id in "${local_ids[@]}"; do
    grep -q "^$id " <<<"$running" || absent_ids+=("$id")
  done
  [ -n "$running" ] || return 0
  while read -r id pid; do
    case " ${local_ids[*]} " in
      *" $id "*) printf 'server %d  pid %d  port %d  data/%d  already runs\n' "$id" "$pid" "${ports[$id]}" "$id" ;;
      *) refuse "data/$id is in use by process $pid, and no local line of nodes.txt is server $id" \
        "nothing was started. Stop what runs from here: ./terminate_servers.sh" ;;
    esac
  done <<<"$running"
  [ ${#absent_ids[@]} -gt 0 ] || refuse "all servers already run; nothing was started. Stop them: ./terminate_servers.sh"
}

refuse_if_ports_are_taken() {
  local id taken=0
  for id in "${absent_ids[@]}"; do
    if answers "${hosts[$id]}" "${ports[$id]}"; then
      echo "server.sh: port ${ports[$id]} of server $id is taken by $(listener "${ports[$id]}")" >&2
      taken=1
    fi
  done
  [ "$taken" = 0 ] || refuse "nothing was started. Stop what uses the port, or change the line in nodes.txt"
}

# Does anybody accept connections there?
answers() {
  local host=${1#[}
  (exec 3<>"/dev/tcp/${host%]}/$2") 2>/dev/null
}

# Who listens on a port, as far as /proc tells.
listener() {
  local hex file own state inode fd pid
  hex=$(printf '%04X' "$1")
  for file in /proc/net/tcp /proc/net/tcp6; do
    [ -r "$file" ] || continue
    while read -r _ own _ state _ _ _ _ _ inode _; do
      if [ "$state" != 0A ] || [ "${own##*:}" != "$hex" ]; then
        continue
      fi
      fd=$(find /proc/[0-9]*/fd -lname "socket:\[$inode\]" 2>/dev/null | head -n 1) || true
      [ -n "$fd" ] || continue
      pid=${fd#/proc/}
      pid=${pid%%/*}
      echo "process $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-80)"
      return 0
    done <"$file"
  done
  echo "another process"
}

# ------------------------------------------------------------------------------------------------ build, start, wait

# Cargo itself knows whether the binaries are stale; when nothing changed this takes a fraction of a second.
build() {
  if [ -n "${TETRACHORD_BIN:-}" ]; then
    [ -x "$bin/server" ] || refuse "TETRACHORD_BIN is $bin, and there is no server in it"
    return 0
  fi
  if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
  fi
  if ! command -v cargo >/dev/null; then
    [ -x "$bin/server" ] || refuse "there are no binaries in $bin and no cargo to build them: install Rust (https://rustup.rs)"
    echo "cargo is not installed: using the binaries in $bin as they are" >&2
    return 0
  fi
  local quiet=()
  if [ -x "$bin/server" ]; then
    quiet=(--quiet)
  else
    echo "building; the first time this takes some minutes" >&2
  fi
  if ! cargo build --release --bins --locked ${quiet[@]+"${quiet[@]}"} >&2; then
    if ! command -v cc >/dev/null && ! command -v gcc >/dev/null && ! command -v clang >/dev/null; then
      refuse "the build failed, and there is no C compiler, which SQLite needs (Debian: apt-get install gcc libc6-dev)"
    fi
    refuse "the build failed; nothing was started"
  fi
}

start_all() {
  local id
  ulimit -Sn "$(ulimit -Hn)" 2>/dev/null || true # each connection is a file
  for id in "${absent_ids[@]}"; do
    mkdir -p "data/$id"
    touch "data/$id/server.log"
    log_starts+=("$(wc -c <"data/$id/server.log")")
    detached "$bin/server" --id "$id" --nodes nodes.txt --data "data/$id" ${arguments[@]+"${arguments[@]}"} \
      </dev/null >>"data/$id/server.log" 2>&1 &
    pids+=($!)
  done
}

# In a session of its own, so that neither Ctrl-C nor the terminal's end reaches it. Same process number as this.
detached() {
  if command -v setsid >/dev/null; then
    exec setsid "$@"
  fi
  trap '' HUP INT
  exec "$@"
}

await_all() {
  local index id
  for index in "${!absent_ids[@]}"; do
    await "$index"
    id=${absent_ids[$index]}
    printf 'server %d  pid %d  port %d  data/%d\n' "$id" "${pids[$index]}" "${ports[$id]}" "$id"
  done
}

# Returns when the server is ready; gives up on all of them when any has died.
await() {
  local id=${absent_ids[$1]} index say_at=$((SECONDS + say_waiting_after_s))
  until is_ready "$1"; do
    for index in "${!absent_ids[@]}"; do
      if ! kill -0 "${pids[$index]}" 2>/dev/null; then
        give_up "$index"
      fi
    done
    if [ "$SECONDS" -ge "$say_at" ]; then
      echo "waiting for server $id to replay its log: $(new_log "$1" | tail -n 1)" >&2
      say_at=$((SECONDS + 10))
    fi
    sleep 0.02
  done
}

is_ready() {
  says_ready "${absent_ids[$1]}" "${pids[$1]}" && kill -0 "${pids[$1]}" 2>/dev/null
}

# says_ready ID PID
says_ready() {
  local ready=""
  { read -r ready <"data/$1/READY"; } 2>/dev/null || true
  [ "$ready" = "$2" ]
}

# What ran already may still be replaying its log.
await_running() {
  local id pid
  while read -r id pid; do
    [ -n "$id" ] || continue
    until says_ready "$id" "$pid"; do
      kill -0 "$pid" 2>/dev/null || refuse "server $id, which ran already as process $pid, ended before it was ready; see data/$id/server.log"
      sleep 0.05
    done
  done <<<"$running"
}

# What the server has logged since this script started it.
new_log() {
  tail -c "+$((${log_starts[$1]} + 1))" "data/${absent_ids[$1]}/server.log"
}

give_up() {
  local id=${absent_ids[$1]} code=0
  wait "${pids[$1]}" || code=$?
  echo "server.sh: server $id did not start (exit code $code); the end of data/$id/server.log:" >&2
  new_log "$1" | tail -n 15 | sed 's/^/  /' >&2
  stop_started
  refuse "nothing that was started is left running"
}

stop_started() {
  local pid end=$((SECONDS + stop_deadline_s))
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -TERM "$pid" 2>/dev/null || true
  done
  for pid in ${pids[@]+"${pids[@]}"}; do
    while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$end" ]; do
      sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

main "$@"

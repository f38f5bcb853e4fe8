#!/usr/bin/env bash
# Stops the servers of this directory.
#
#   ./terminate_servers.sh            stop them and keep the data
#   ./terminate_servers.sh --clean    then delete their data directories too
#   ./terminate_servers.sh --list     only say which run: one line "id pid" for each
#
# A server belongs to this directory when it holds the lock of data/<id>/LOCK, however it was started. A process number
# alone decides nothing: numbers are used again. Each server gets SIGTERM and 10 seconds to answer what it has taken and to
# close its files; then SIGKILL. Both lose nothing that was acknowledged. Servers started with --data elsewhere are not
# touched.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"

deadline_s=10

main() {
  case "${1:-}" in
    "" | --clean) ;;
    --list) list; return ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "./${0##*/}"; return ;;
    *) echo "terminate_servers.sh: unknown argument '$1'; see ./terminate_servers.sh --help" >&2; exit 2 ;;
  esac

  local failed=0
  stop_all || failed=1
  if [ "${1:-}" = --clean ] && [ "$failed" = 0 ]; then
    clean
  fi
  return "$failed"
}

# "id pid" of every server that runs here, in the order of the ids.
list() {
  local id pid
  for id in $(ids); do
    if pid=$(holder "$id"); then
      echo "$id $pid"
    fi
  done
}

# Names of the data directories: numbers only.
ids() {
  local folder
  for folder in data/*/; do
    folder=${folder#data/}
    folder=${folder%/}
    if [[ $folder =~ ^[0-9]+$ ]]; then
      echo "$folder"
    fi
  done | sort -n
}

# Prints the process that holds the directory's LOCK; fails when there is none.
holder() {
  local lock="data/$1/LOCK" pid="" inode fd
  [ -f "$lock" ] || return 1
  read -r pid <"$lock" || true
  [[ $pid =~ ^[0-9]+$ ]] || return 1

  # Everybody may ask the system who holds which lock, whoever's the process is.
  read -r inode _ <<<"$(ls -i "$lock")"
  if grep -Eqs " FLOCK .* $pid [^ ]+:$inode " /proc/locks; then
    echo "$pid"
    return 0
  fi
  # Some file systems (shared folders of virtual machines) keep their locks to themselves.
  for fd in "/proc/$pid/fd/"*; do
    if [ "$fd" -ef "$lock" ]; then
      echo "$pid"
      return 0
    fi
  done
  [ ! -d /proc/self ] || return 1
  # No /proc (macOS): a server by its command line.
  case "$(ps -p "$pid" -o command= 2>/dev/null)" in
    *server*) echo "$pid" ;;
    *) return 1 ;;
  esac
}

stop_all() {
  local running
  running=$(list)
  if [ -z "$running" ]; then
    echo "no server runs from here"
    return 0
  fi

  local id pid waiting=() failed=0
  while read -r id pid; do
    if kill -TERM "$pid" 2>/dev/null; then
      kill -CONT "$pid" 2>/dev/null || true # a frozen one could not hear it
      waiting+=("$id $pid")
    elif holder "$id" >/dev/null; then
      echo "server $id  pid $pid  cannot be stopped: not permitted (it belongs to another user)" >&2
      failed=1
    else
      echo "server $id  pid $pid  stopped"
    fi
  done <<<"$running"

  local end=$((SECONDS + deadline_s))
  await "stopped" "$end"
  if [ ${#waiting[@]} -gt 0 ]; then
    local entry
    for entry in "${waiting[@]}"; do
      read -r id pid <<<"$entry"
      if holder "$id" >/dev/null; then
        kill -KILL "$pid" 2>/dev/null || true
      fi
    done
    await "did not stop within $deadline_s s: killed" $((SECONDS + deadline_s))
  fi
  if [ ${#waiting[@]} -gt 0 ]; then
    printf 'server %s still runs\n' "${waiting[@]/ /  pid }" >&2
    failed=1
  fi
  return "$failed"
}

# Says `$1` of every server of `waiting` that is gone; returns when all are or at second $2, the others left in it.
await() {
  local id pid entry still
  while [ ${#waiting[@]} -gt 0 ]; do
    still=()
    for entry in "${waiting[@]}"; do
      read -r id pid <<<"$entry"
      if [ "$(holder "$id")" = "$pid" ]; then
        still+=("$entry")
      else
        echo "server $id  pid $pid  $1"
      fi
    done
    waiting=(${still[@]+"${still[@]}"})
    if [ ${#waiting[@]} -eq 0 ] || [ "$SECONDS" -ge "$2" ]; then
      return 0
    fi
    sleep 0.05
  done
}

# Deletes data/<number> folders that hold a server's files, and nothing else. Of one that lies elsewhere the link stays:
# where the data is to be was somebody's choice.
clean() {
  local id
  for id in $(ids); do
    if [ ! -e "data/$id/LOCK" ] && [ ! -e "data/$id/log.db" ] && [ ! -e "data/$id/server.log" ]; then
      echo "data/$id kept: it holds no files of a server" >&2
    elif [ -L "data/$id" ]; then
      find "data/$id/" -mindepth 1 -delete
      echo "data/$id emptied: it is a link to $(readlink "data/$id")"
    else
      rm -rf "data/$id"
      echo "data/$id deleted"
    fi
  done
  rmdir data 2>/dev/null || true
}

main "$@"

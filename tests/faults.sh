#!/usr/bin/env bash
# Are the tests any good? Breaks the store on purpose, one fault of tests/faults/ at a time, and runs the simulator until it
# notices.
#
#   tests/faults.sh [NAME...]      all of them, or those named
#
# Prints a line for each: the seed that noticed, or the run made by hand (tests/sim/scenes.rs), and which promise was seen
# broken. What no run notices within SEEDS (environment; 1000) seeds, a test of the library has to; otherwise the exit code is
# 1. A fault that no simulation can show names that test in its patch ("test: NAME").
#
# Works in target/faults/, with few optimisations and without the programs, for most of the time goes to the compiler; allow
# one to two minutes for each fault. Nothing of the tree is changed.
set -euo pipefail
cd "$(dirname "$0")/.."

seeds=${SEEDS:-1000}
folder=${CARGO_TARGET_DIR:-$PWD/target}/faults
tree=$folder/tree
export CARGO_TARGET_DIR=$folder/target CARGO_INCREMENTAL=1 CARGO_PROFILE_SIM_OPT_LEVEL=1 CARGO_PROFILE_SIM_DEBUG=0

main() {
  case "${1:-}" in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "tests/${0##*/}"; exit 0 ;;
  esac
  [ $# -gt 0 ] || set -- tests/faults/*.patch
  local missed=0 fault name found
  for fault in "$@"; do
    name=$(basename "$fault" .patch)
    [ -f "tests/faults/$name.patch" ] || { echo "tests/faults.sh: there is no fault '$name'" >&2; exit 2; }
    break_it "$name"
    found=$(notice "$name")
    case "$found" in
      '' ) missed=1; found="NOT NOTICED within $seeds seeds" ;;
      'did not build'*) missed=1 ;;
    esac
    printf '%-34s %s\n' "$name" "$found"
  done
  exit "$missed"
}

# A copy of the sources with the fault in it.
break_it() {
  rm -rf "${tree:?}"
  mkdir -p "$tree"
  cp -r Cargo.lock chord.thrift src tests examples benches "$tree/"
  rm -rf "$tree/src/bin"
  sed '/^default-run/d' Cargo.toml >"$tree/Cargo.toml"
  GIT_CEILING_DIRECTORIES=$folder git -C "$tree" apply "$PWD/tests/faults/$1.patch" || {
    echo "tests/faults.sh: $1 does not apply" >&2
    exit 2
  }
}

# Who noticed, or nothing.
notice() {
  local test simulator build=(cargo test --locked --profile sim --manifest-path "$tree/Cargo.toml")
  test=$(sed -n 's/^test: //p' "tests/faults/$1.patch")
  if [ -n "$test" ]; then
    "${build[@]}" --lib -- --exact "$test" 2>&1 | sed -n "s/^test $test \.\.\. FAILED/the test $test/p" || true
    return
  fi
  if ! "${build[@]}" --test sim --no-run >"$folder/built" 2>&1; then
    echo "did not build; see $folder/built"
    return
  fi
  simulator=$CARGO_TARGET_DIR/sim/deps/$(sed -n 's|.*(.*/deps/\(sim-[0-9a-f]*\)).*|\1|p' "$folder/built")
  trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # Ctrl-C does not reach them
  local half=$((seeds / 2)) options=(--whole --no-repeat) first second
  "$simulator" --seeds 0 "${options[@]}" >"$folder/scenes" 2>&1 || true
  "$simulator" --seeds "$half" "${options[@]}" --no-scenes >"$folder/first" 2>&1 &
  first=$!
  "$simulator" --seeds $((seeds - half)) --first $((half + 1)) "${options[@]}" --no-scenes >"$folder/second" 2>&1 &
  second=$!
  # The first half is told first; the second is waited for only if that noticed nothing.
  wait "$first" || kill "$second" 2>/dev/null || true
  wait "$second" 2>/dev/null || true
  local found
  found=$(sed -n -e 's/^FAILED \(seed\|scene\) \([^:]*\): \(.*\)/\1 \2: \3/p' -e 's/^.*panicked at/a panic at/p' \
    "$folder/first" "$folder/second" "$folder/scenes" | head -n 1)
  [ -n "$found" ] ||
    found=$("${build[@]}" --lib 2>&1 | sed -n 's/^test \(.*\) \.\.\. FAILED/no seed; the test \1/p' | head -n 1) || true
  echo "$found"
}

main "$@"

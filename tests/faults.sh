#!/usr/bin/env bash
# Are the tests any good? Breaks the store on purpose, one fault of tests/faults/ at a time, and runs the simulator until it
# notices.
#
#   tests/faults.sh [NAME...]      all of them, or those named
#
# Prints a line for each: how many seeds it took, and which promise was seen broken. The exit code is 1 if a fault was
# not noticed within SEEDS (environment; 1000) seeds. Builds in target/faults; nothing of the tree is changed.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
esac
seeds=${SEEDS:-1000}
tree=$PWD/target/faults/tree
if [ $# -eq 0 ]; then
  set -- tests/faults/*.patch
fi

missed=0
for fault in "$@"; do
  name=$(basename "$fault" .patch)
  [ -f "tests/faults/$name.patch" ] || { echo "tests/faults.sh: there is no fault '$name'" >&2; exit 2; }
  mkdir -p "$tree"
  rm -rf "${tree:?}"/*
  cp -r Cargo.toml Cargo.lock chord.thrift src tests examples "$tree/"
  [ ! -d benches ] || cp -r benches "$tree/"
  git apply --directory=target/faults/tree "tests/faults/$name.patch" || { echo "$name: does not apply" >&2; exit 2; }
  caught=no
  CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target} cargo test --quiet --locked --manifest-path "$tree/Cargo.toml" \
    --test sim -- --seeds "$seeds" --whole --no-repeat >"$tree/out" 2>"$tree/err" || caught=yes
  found=$(sed -n 's/^FAILED seed \([0-9]*\): \(.*\)/seed \1: \2/p' "$tree/out" | head -1)
  if [ "$caught" = yes ] && [ -n "$found" ]; then
    printf '%-32s %s\n' "$name" "$found"
  elif grep -q panicked "$tree/err"; then
    printf '%-32s %s\n' "$name" "a panic: $(grep -m1 panicked "$tree/err")"
  elif [ "$caught" = yes ]; then
    printf '%-32s %s\n' "$name" "did not run:"; tail -5 "$tree/err"
    missed=1
  else
    printf '%-32s %s\n' "$name" "NOT CAUGHT within $seeds seeds"
    missed=1
  fi
done
exit $missed

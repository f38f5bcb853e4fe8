#!/usr/bin/env bash
# Fuzzes one target for as long as one likes; `cargo test --test fuzz` does the same for a second or so.
#
#   tests/fuzz.sh TARGET [SECONDS]     60 seconds when left out
#   tests/fuzz.sh all [SECONDS]        one target after the other, each for so long
#
# With cargo-fuzz (cargo install cargo-fuzz) libFuzzer looks for inputs that reach new code, with AddressSanitizer, SQLite
# included; the stable toolchain does. What it finds worth keeping stays in target/fuzz-corpus/TARGET, beside the corpus of
# the repository. Without cargo-fuzz the changed inputs of tests/fuzz.rs are tried, from a seed of their own.
#
# What fails is in target/fuzz-failed/; either way this tries it again:
#   TETRACHORD_FUZZ_INPUT=FILE cargo test --test fuzz -- --exact TARGET
set -euo pipefail
cd "$(dirname "$0")/.."

main() {
  case "${1:-}" in
    "" | -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "tests/${0##*/}"; exit 0 ;;
  esac
  local target seconds=${2:-60}
  export TETRACHORD_FUZZ_SCRATCH
  TETRACHORD_FUZZ_SCRATCH=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
  trap 'rm -rf "$TETRACHORD_FUZZ_SCRATCH"' EXIT
  for target in $(chosen "$1"); do
    echo "=== $target, $seconds s"
    if cargo fuzz --version >/dev/null 2>&1; then
      with_libfuzzer "$target" "$seconds"
    else
      TETRACHORD_FUZZ_SEED=$(date +%s)000000 TETRACHORD_FUZZ_SECONDS=$seconds \
        cargo test --locked --test fuzz -- --exact --nocapture "$target"
    fi
  done
}

chosen() {
  local every
  every=$(ls tests/fuzz/corpus)
  if [ "$1" = all ]; then
    echo "$every"
  elif grep -qx -- "$1" <<<"$every"; then
    echo "$1"
  else
    echo "tests/fuzz.sh: no target is called '$1'; there are $(tr '\n' ' ' <<<"$every")" >&2
    exit 2
  fi
}

# AddressSanitizer takes two tables that SQLite's one file has under the same name for one; what lives as long as the
# process is no leak.
with_libfuzzer() {
  local kept=target/fuzz-corpus/$1 failed=target/fuzz-failed
  mkdir -p "$kept" "$failed"
  RUSTC_BOOTSTRAP=1 ASAN_OPTIONS=detect_odr_violation=0:detect_leaks=0 \
    cargo fuzz run --fuzz-dir fuzz --target-dir target/fuzz "$1" "$kept" "tests/fuzz/corpus/$1" -- \
    -max_total_time="$2" -max_len=4096 -timeout=60 -rss_limit_mb=4096 -artifact_prefix="$failed/$1-" -print_final_stats=1
}

main "$@"

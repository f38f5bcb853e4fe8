#!/usr/bin/env bash
# Makes the clients in tests/interop/gen-py and gen-nodejs from chord.thrift, as any application would: nothing in them is
# mended. Needs the Apache Thrift compiler (Debian: thrift-compiler 0.17); the tests do not. `generate.sh --check` writes
# nothing and fails when what is checked in is not current.
#
# Left out: the service between servers, which no client calls, and the compiler's own command-line scripts.
set -euo pipefail
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
thrift --gen py -o "$out" ../../chord.thrift
thrift --gen js:node,es6 -o "$out" ../../chord.thrift
rm "$out"/gen-py/__init__.py "$out"/gen-py/chord/*-remote "$out"/gen-py/chord/Peer.py "$out"/gen-nodejs/Peer.js
sed -i "s/, 'Peer'//" "$out"/gen-py/chord/__init__.py
if [ "${1:-}" = --check ]; then
  for made in gen-py gen-nodejs; do
    diff -ru --exclude=__pycache__ "$made" "$out/$made" || {
      echo "tests/interop/$made is not current: run tests/interop/generate.sh" >&2
      exit 1
    }
  done
else
  rm -rf gen-py gen-nodejs
  cp -r "$out/gen-py" "$out/gen-nodejs" .
fi

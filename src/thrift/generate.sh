#!/usr/bin/env bash
# Makes src/thrift/chord.rs from chord.thrift. Needs the Apache Thrift compiler (Debian: thrift-compiler 0.17);
# the build does not. `generate.sh --check` writes nothing and fails when the checked-in file is not current.
#
# Three things are mended in what the compiler writes:
#   - a field that was not sent starts as absent, not as zero or empty text
#   - a list's claimed length never decides how much memory is reserved
#   - names of fields and structs, which no protocol here carries, are not allocated to be written
set -euo pipefail
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
thrift --gen rs -out "$out" ../../chord.thrift
sed -E -i \
  -e 's/(let mut f_[0-9]+: Option<.*> = )Some\(.*\);/\1None;/' \
  -e 's/Vec::with_capacity\((.*)\.size as usize\)/Vec::with_capacity(thrift::protocol::prealloc_size(\1.size))/' \
  -e 's/(TFieldIdentifier|TStructIdentifier)::new\("[^"]*"/\1::new(""/' \
  "$out/chord.rs"
if [ "${1:-}" = --check ]; then
  diff -u chord.rs "$out/chord.rs" || { echo "src/thrift/chord.rs is not current: run src/thrift/generate.sh" >&2; exit 1; }
else
  cp "$out/chord.rs" chord.rs
fi

#!/usr/bin/env bash
# The scalar kernels under Miri, which sees what a processor does not: reads past an end, values that were never written,
# pointers that alias. Under Miri the kernels detect no instruction set beyond scalar, and their tests take tiny sizes.
#
# Miri comes with nightly toolchains only. Where there is none that has it and the source of the standard library, this
# says so and does nothing.
set -euo pipefail

usage() {
  cat <<'END'
usage: deploy/test-miri.sh

Environment:
  ROOST_MIRI_TOOLCHAIN   the toolchain that has Miri (default: the one of rust-toolchain.toml, else nightly)
END
}

case ${1-} in
  "") ;;
  --help | -h)
    usage
    exit
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
# Nothing is fetched here: a toolchain that is not there stays away.
export RUSTUP_AUTO_INSTALL=0

# Miri builds the standard library from its source, and would fetch that where it is not there.
has_miri() {
  cargo ${1:+"+$1"} miri --version >/dev/null 2>&1 &&
    [[ -d "$(rustc ${1:+"+$1"} --print sysroot)/lib/rustlib/src/rust/library" ]]
}

if [[ -n ${ROOST_MIRI_TOOLCHAIN-} ]]; then
  toolchain=$ROOST_MIRI_TOOLCHAIN
  has_miri "$toolchain" || {
    echo "test-miri.sh: the toolchain $toolchain lacks Miri or rust-src" >&2
    exit 1
  }
elif has_miri ""; then
  toolchain=""
elif has_miri nightly; then
  toolchain=nightly
else
  echo "note: no toolchain here has Miri and the library's source (rustup +nightly component add miri rust-src), so the" \
    "scalar kernels are not run under it" >&2
  exit 0
fi
started=$SECONDS
cargo ${toolchain:+"+$toolchain"} miri test --locked -p roost-kernels --lib
echo "--- under Miri: ok, $((SECONDS - started)) s"

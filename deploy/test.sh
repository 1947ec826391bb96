#!/usr/bin/env bash
# Everything that must hold before a change goes in, in the order of what fails soonest. The continuous integration
# calls this script and nothing else, so that what it says can be repeated anywhere by one command.
set -euo pipefail

usage() {
  cat <<'END'
usage: deploy/test.sh

Runs, from any folder, and stops at the first failure:
  onnxruntime   fetch ONNX Runtime into deploy/onnxruntime (nothing to do when it is there)
  format        cargo fmt --all -- --check
  clippy        cargo clippy on all targets, warnings are errors
  client, edge  cargo check of the client library alone, and of a worker without coordinator, dev, S3 and OTLP, with
                either engine; the native one alone must not name ONNX Runtime's bindings
  test          cargo test on the workspace, doc tests and simulations included; all failures are shown
  conformance   roost-node conformance on ONNX's 882 operator tests, fetched from the pinned wheel
  network       deploy/test-network.sh: a cluster whose network is cut, loses and delays (as root, where there is iproute2)
  doc           cargo doc on the workspace, warnings are errors
  miri          deploy/test-miri.sh: the scalar kernels under Miri (where a toolchain has it; a note says so otherwise)
  arm64         deploy/test-arm64.sh: kernels and output bits on ARM64, by qemu (where there is apt-get)

Environment:
  ROOST_TEST_MODELS   folder with the larger test models, which are not in the repository
                      (default: shared/models beside the repository)
  CI=true             no incremental compilation; no colours unless CARGO_TERM_COLOR says so
RUSTFLAGS is ignored: it would override the flags in .cargo/config.toml, without which the simulator does not build.
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
export ROOST_TEST_MODELS=${ROOST_TEST_MODELS:-$(dirname -- "$root")/shared/models}
if [[ ${CI-} == true ]]; then
  # Every build there is a first one: incremental files cost time and disk, and are never read. Colours are noise in a
  # plain log; who can show them sets the variable.
  export CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
fi

current=""
trap '[[ -z $current ]] || echo "=== $current: FAILED after $((SECONDS - started)) s" >&2' EXIT

# step NAME COMMAND...
step() {
  current=$1 started=$SECONDS
  shift
  echo "=== $current: $*"
  "$@"
  echo "=== $current: ok, $((SECONDS - started)) s"
  current=""
}

# A node on the native engine alone: no foreign library, linked or loaded.
edge_native() {
  cargo check -p roost-node --no-default-features --features native --locked
  local bindings
  bindings=$(cargo tree -p roost-node --no-default-features --features native --edges normal --prefix none --locked)
  if grep -E '^(ort|ort-sys|libloading) ' <<<"$bindings"; then
    echo "an edge build needs what is listed above" >&2
    return 1
  fi
}

# Every test passes on the native engine: none fails, none is unsupported. The binary is the one that the tests built.
conformance() {
  local target=${CARGO_TARGET_DIR:-$root/target}
  local tests=$target/tmp/onnx-1.18.0-tests
  node/native/tests/fetch-conformance.sh "$tests"
  local report
  report=$("$target/debug/roost-node" conformance "$tests" --engine native \
    --list node/native/tests/data/core_onnx118.json) || true
  echo "$report"
  [[ $(tail -n 1 <<<"$report") == "882 passed, 0 failed, 0 unsupported" ]]
}

[[ -d $ROOST_TEST_MODELS ]] || echo "note: ROOST_TEST_MODELS names no folder: $ROOST_TEST_MODELS" >&2
step onnxruntime deploy/fetch-onnxruntime.sh
step format cargo fmt --all -- --check
step clippy cargo clippy --workspace --all-targets --locked -- -D warnings
# What an edge build leaves out must not be needed: the workspace's own features hide that.
step client cargo check -p roost-client --no-default-features --locked
step edge cargo check -p roost-node --no-default-features --features onnxruntime --locked
step edge edge_native
# The simulator's known bugs too: they are switches of builds with debug assertions, so they need no build of their own.
step test cargo test --workspace --locked --no-fail-fast
step conformance conformance
if ((EUID == 0)) && command -v ip >/dev/null && ip netns add roost-try 2>/dev/null; then
  ip netns del roost-try
  step network deploy/test-network.sh
else
  echo "note: no network namespaces here; deploy/test-network.sh --help says what it needs" >&2
fi
step doc env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
step miri deploy/test-miri.sh
if command -v apt-get >/dev/null; then
  step arm64 deploy/test-arm64.sh
else
  echo "note: no apt-get, so ARM64 is not tested; deploy/test-arm64.sh --help says what it needs" >&2
fi
echo "=== all passed, $SECONDS s"

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
  client, edge  cargo check of the client library alone, and of a worker without coordinator, dev, S3 and OTLP
  test          cargo test on the workspace, doc tests and simulations included; all failures are shown
  doc           cargo doc on the workspace, warnings are errors

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

[[ -d $ROOST_TEST_MODELS ]] || echo "note: ROOST_TEST_MODELS names no folder: $ROOST_TEST_MODELS" >&2
step onnxruntime deploy/fetch-onnxruntime.sh
step format cargo fmt --all -- --check
step clippy cargo clippy --workspace --all-targets --locked -- -D warnings
# What an edge build leaves out must not be needed: the workspace's own features hide that.
step client cargo check -p roost-client --no-default-features --locked
step edge cargo check -p roost-node --no-default-features --features onnxruntime --locked
# The simulator's known bugs too: they are switches of builds with debug assertions, so they need no build of their own.
step test cargo test --workspace --locked --no-fail-fast
step doc env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
echo "=== all passed, $SECONDS s"

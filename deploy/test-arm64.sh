#!/usr/bin/env bash
# The kernels and the native engine on ARM64, on a machine that need not be one: cross-compiled, then run by qemu as a
# processor without dotprod (cortex-a72) and as one with everything (max). The engine's output bits must be those that
# x86-64 gives, which node/native/tests/data/golden.txt pins; and it passes ONNX's 882 operator tests there too. Running
# all of that, on both processors, must take 180 seconds at most; setting up and building are not counted.
#
# What it needs comes from the machine's own Debian mirror, by apt into a folder of its own: a cross gcc, qemu-user, and,
# where rustup has no std for the target, the sources to build it from. Nothing else on the system changes. A folder that
# is set up is used again.
set -euo pipefail

usage() {
  cat <<'END'
usage: deploy/test-arm64.sh [--setup-only]

Environment:
  ROOST_ARM64            where the tools lie (default: target/arm64)
  ROOST_ARM64_S_MAX      seconds that the runs may take together (default: 180)
  RUST_LIBRARY_TARBALL   library/ of the Rust sources, as .tar.xz, to build std from (default: shared/arm64/
                         rust-std-source-VERSION.tar.xz beside the repository, else Debian's rust-src)
Needs: a Debian with a mirror in its apt sources, xz, python3 with pip, Rust as rust-toolchain.toml names it.
END
}

fail() {
  echo "test-arm64.sh: $*" >&2
  exit 1
}

setup_only=no
case ${1-} in
  "") ;;
  --setup-only) setup_only=yes ;;
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
target=aarch64-unknown-linux-gnu
version=$(rustc -V | cut -d' ' -f2)
tools=$(realpath -m -- "${ROOST_ARM64:-$root/target/arm64}")
# Named after the toolchain, so that another one counts as absent.
complete=$tools/.complete-$version

# Runs apt on state of our own: the mirrors of the system's sources, but none of its installed packages.
private_apt() {
  local command=$1
  shift
  "$command" -c "$tools/apt/apt.conf" "$@"
}

prepare_apt() {
  local suite mirror
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  # Most machines have only one of these.
  mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } \
    | sed -nE 's/^URIs:[[:space:]]*//p; s/^deb[[:space:]]+(\[[^]]*\][[:space:]]*)?([^[:space:]]+).*/\2/p' \
    | tr ' ' '\n' | grep -E -m 1 '/debian/?$') || fail "no Debian mirror in the apt sources"
  mkdir -p "$tools"/apt/{state/lists/partial,cache/archives/partial,debs,none}
  : >"$tools/apt/state/status"
  local key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
  {
    echo "deb $key $mirror $suite main"
    # qemu of 10 or later: 7.2 crashes on what newer compilers emit.
    echo "deb $key $mirror $suite-backports main"
    # Sources of several Rust versions.
    [[ $suite == trixie ]] || echo "deb $key $mirror trixie-backports main"
  } >"$tools/apt/sources.list"
  cat >"$tools/apt/apt.conf" <<END
Dir::Etc::sourcelist "$tools/apt/sources.list";
Dir::Etc::sourceparts "$tools/apt/none";
Dir::Etc::preferences "$tools/apt/none/preferences";
Dir::Etc::preferencesparts "$tools/apt/none";
Dir::State "$tools/apt/state";
Dir::State::status "$tools/apt/state/status";
Dir::Cache "$tools/apt/cache";
#clear APT::Architectures;
APT::Architectures { "amd64"; };
Acquire::Languages "none";
APT::Sandbox::User "root";
#clear APT::Update::Post-Invoke;
END
  private_apt apt-get -qq update
}

# The cross compiler and qemu, unpacked and not installed.
fetch_compiler() {
  local packages qemu deb
  packages=$(private_apt apt-get install -s --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
    | awk '/^Inst/ {print $2}' \
    | grep -E -e '(-aarch64-linux-gnu(-base)?|-arm64-cross|^gcc-[0-9]+-cross-base)$' -e '^lib(mpc|isl|mpfr|gmp|jansson)[0-9]+$' \
    | grep -vE '^lib(asan|tsan|lsan|ubsan|hwasan|itm)[0-9]')
  qemu=$(private_apt apt-cache madison qemu-user | awk '{print $3}' | grep -vE ':[0-9]\.' | sort -V | tail -1)
  [[ -n $qemu ]] || fail "the mirror has no qemu-user of 10 or later"
  # shellcheck disable=SC2086 # a list of names
  (cd "$tools/apt/debs" && private_apt apt-get -qq download $packages "qemu-user=$qemu")
  rm -rf -- "$tools/root" "$tools/bin"
  mkdir -p -- "$tools/root" "$tools/bin"
  for deb in "$tools"/apt/debs/*.deb; do
    case ${deb##*/} in
      qemu-user_*) dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/bin/qemu-aarch64 >"$tools/bin/qemu-aarch64" ;;
      *) dpkg-deb -x "$deb" "$tools/root" ;;
    esac
  done
  local tool
  for tool in gcc ar ranlib strip as ld; do
    # Its libraries lie beside it, not on the system.
    {
      echo '#!/bin/sh'
      echo "export LD_LIBRARY_PATH=$tools/root/usr/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
      local options=""
      [[ $tool == gcc ]] && options="--sysroot=$tools/root "
      echo "exec $tools/root/usr/bin/aarch64-linux-gnu-$tool $options\"\$@\""
    } >"$tools/bin/aarch64-linux-gnu-$tool"
  done
  chmod +x "$tools"/bin/*
}

# Puts library/ of this Rust version into $tools/src.
unpack_std() {
  local tarball=${RUST_LIBRARY_TARBALL:-$root/../shared/arm64/rust-std-source-$version.tar.xz}
  rm -rf -- "$tools/src"
  mkdir -p -- "$tools/src"
  if [[ -f $tarball ]]; then
    tar -xJf "$tarball" -C "$tools/src"
    return
  fi
  local package
  package=$(private_apt apt-cache madison rust-src | awk '{print $3}' | grep -F "$version+dfsg" | sort -V | tail -1)
  [[ -n $package ]] || fail "the mirror has no rust-src $version; set RUST_LIBRARY_TARBALL"
  (cd "$tools/apt/debs" && private_apt apt-get -qq download "rust-src=$package")
  dpkg-deb --fsys-tarfile "$tools"/apt/debs/rust-src_*.deb \
    | tar -x -C "$tools/src" --strip-components=4 --wildcards --exclude='*/library/vendor/*' "./usr/src/rustc-$version/library/*"
}

# Builds std for the target, and a toolchain folder that has it: the host's own, by links, and copies of what looks for
# its sysroot beside itself.
build_std() {
  local host hash library
  host=$(rustc --print sysroot)
  hash=$(rustc -vV | sed -n 's/^commit-hash: //p')
  (
    cd "$tools/src/library"
    export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$tools/std-target" __CARGO_DEFAULT_LIB_METADATA=arm64std
    RUSTC=$(rustup which --toolchain "$version" rustc)
    export RUSTC CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER="$tools/bin/aarch64-linux-gnu-gcc"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-Zforce-unstable-if-unmarked -Cembed-bitcode=yes \
--remap-path-prefix=$PWD=/rustc/$hash/library"
    "$(rustup which --toolchain "$version" cargo)" build -q --locked --release --manifest-path sysroot/Cargo.toml \
      --target "$target" --features "backtrace panic-unwind"
  )
  rm -rf -- "$tools/toolchain"
  mkdir -p -- "$tools/toolchain/lib/rustlib/$target/lib"
  cp -r -- "$host/bin" "$tools/toolchain/bin"
  cp -- "$host"/lib/librustc_driver-*.so "$tools/toolchain/lib/"
  for library in "$host"/lib/libLLVM*; do ln -s -- "$(realpath -s -- "$library")" "$tools/toolchain/lib/"; done
  for library in "$host"/lib/rustlib/*; do
    [[ ${library##*/} == "$target" ]] || ln -s -- "$library" "$tools/toolchain/lib/rustlib/"
  done
  cp -- "$tools/std-target/$target"/release/deps/lib*.rlib "$tools/std-target/$target"/release/deps/libstd*.so \
    "$tools/toolchain/lib/rustlib/$target/lib/"
  rm -f -- "$tools/toolchain/lib/rustlib/$target"/lib/libsysroot-*
}

set_up() {
  echo "setting up ARM64 tools in $tools"
  unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTC_WRAPPER
  prepare_apt
  fetch_compiler
  if [[ ! -d $(rustc --print sysroot)/lib/rustlib/$target ]]; then
    unpack_std
    build_std
  fi
  rm -rf -- "$tools/apt" "$tools/src" "$tools/std-target"
  touch -- "$complete"
}

[[ -e $complete ]] || set_up
[[ $setup_only == no ]] || exit 0

# The toolchain's own cargo and rustc: rustup's would look for std elsewhere.
[[ -d $tools/toolchain/bin ]] && export PATH="$tools/toolchain/bin:$PATH"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$tools/bin/aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu=$tools/bin/aarch64-linux-gnu-gcc
export AR_aarch64_unknown_linux_gnu=$tools/bin/aarch64-linux-gnu-ar
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$tools/bin/qemu-aarch64
export QEMU_LD_PREFIX=$tools/root/usr/aarch64-linux-gnu
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

# In release: qemu runs float code 50 to 70 times slower than the machine itself. Without the release profile's LTO, which
# costs more to build than it saves here.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=false
kernels=(--release --locked --target "$target" -p roost-kernels --lib --test golden)
native=(--release --locked --target "$target" -p roost-native --test golden)
cargo test "${kernels[@]}" --no-run
operators=(--release --locked --target "$target" -p roost-native --test suite conformance)
cargo test "${native[@]}" --test suite --no-run
# ONNX's operator tests, from the pinned wheel; fetched here, since the tests' own way would start it under qemu.
ROOST_TEST_CONFORMANCE=${ROOST_TEST_CONFORMANCE:-${CARGO_TARGET_DIR:-$root/target}/tmp/onnx-1.18.0-tests}
ROOST_TEST_CONFORMANCE=$(realpath -m -- "$ROOST_TEST_CONFORMANCE")
export ROOST_TEST_CONFORMANCE
node/native/tests/fetch-conformance.sh "$ROOST_TEST_CONFORMANCE"
# Under qemu a kernel that became slow, or a test that grew, shows long before it does on the machine itself.
run_s_max=${ROOST_ARM64_S_MAX:-180}
run_started=$SECONDS
for processor in cortex-a72 max; do
  echo "--- as $processor"
  started=$SECONDS
  QEMU_CPU=$processor cargo test --quiet "${kernels[@]}"
  QEMU_CPU=$processor cargo test --quiet "${native[@]}"
  QEMU_CPU=$processor cargo test --quiet "${operators[@]}"
  echo "--- as $processor: ok, $((SECONDS - started)) s"
done
run_s=$((SECONDS - run_started))
((run_s <= run_s_max)) || fail "the runs took $run_s s, over the $run_s_max s that they may take"
echo "--- on ARM64: ok, $run_s s"

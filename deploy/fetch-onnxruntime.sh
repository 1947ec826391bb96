#!/usr/bin/env bash
# Fetches the ONNX Runtime library that the engine `onnxruntime` loads, with its licences, into deploy/onnxruntime/.
#
# The source is the Python wheel, by pip: it goes through whatever index the machine's pip is set up for, and the hash
# in requirements-ARCH.txt says that the file is the right one. Nothing of Python stays.
#
# What is there and intact is left alone. Each file appears under its name complete or not at all, and the list of
# checksums comes last, so a run that was cut short is made good by the next.
set -euo pipefail

usage() {
  cat <<'END'
usage: fetch-onnxruntime.sh [--arch x86_64|aarch64] [--into FOLDER]

Fetches libonnxruntime.so, its LICENSE and its ThirdPartyNotices.txt, unless FOLDER has them already.
  --arch   the machine to fetch for (default: this one)
  --into   where to (default: the folder onnxruntime beside this script)
Needs python3 with pip and a package index that pip can reach.
END
}

fail() {
  echo "fetch-onnxruntime.sh: $*" >&2
  exit 1
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
arch=$(uname -m)
into=$here/onnxruntime

while (($#)); do
  case $1 in
    --arch | --into)
      (($# >= 2)) || fail "$1 needs a value"
      if [[ $1 == --arch ]]; then arch=$2; else into=$2; fi
      shift 2
      ;;
    --help | -h)
      usage
      exit
      ;;
    *)
      usage >&2
      fail "unknown argument '$1'"
      ;;
  esac
done

# `arm64` is what some systems call it.
[[ $arch == arm64 ]] && arch=aarch64
requirements=$here/onnxruntime/requirements-$arch.txt
[[ -f $requirements ]] || fail "no ONNX Runtime is pinned for '$arch' (x86_64 and aarch64 are)"
version=$(sed -n 's/^onnxruntime==\([0-9.]*\) .*/\1/p' "$requirements")
wheel_hash=$(sed -n 's/.*--hash=sha256:\([0-9a-f]\{64\}\).*/\1/p' "$requirements")
[[ -n $version && -n $wheel_hash ]] || fail "$requirements does not say 'onnxruntime==VERSION --hash=sha256:...'"

library=libonnxruntime.so.$version
link=libonnxruntime.so
# Named after the wheel, so that another pinned wheel or another architecture counts as absent.
checksums=.fetched-$wheel_hash

intact() {
  [[ -f $checksums && $(readlink -- "$link") == "$library" ]] && sha256sum --check --status -- "$checksums" 2>/dev/null
}

mkdir -p -- "$into"
cd -- "$into"
into=$PWD
if intact; then
  exit 0
fi

command -v python3 >/dev/null || fail "python3 is missing: install it (Debian: apt install python3 python3-pip)"
python3 -m pip --version >/dev/null 2>&1 \
  || fail "python3 has no pip: install it (Debian: apt install python3-pip; elsewhere: python3 -m ensurepip)"

# Inside the target, so that the renames below stay on one file system.
temporary=$(mktemp -d -- "$into/.fetch-XXXXXX")
trap 'rm -rf -- "$temporary"' EXIT

echo "fetching ONNX Runtime $version for $arch"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --implementation cp --python-version 3.11 --abi cp311 --platform "manylinux_2_28_$arch" \
  --require-hashes --requirement "$requirements" --dest "$temporary" \
  || fail "pip could not fetch onnxruntime $version for $arch (see its message above)"

wheels=("$temporary"/*.whl)
[[ -f ${wheels[0]} ]] || fail "pip reported success, yet no wheel is in $temporary"

# Python reads the archive, so that `unzip` need not be installed.
python3 - "${wheels[0]}" "$temporary" "$library" <<'END' || fail "${wheels[0]##*/} does not hold what it should"
import shutil, sys, zipfile

wheel, folder, library = sys.argv[1:]
members = {
    f"onnxruntime/capi/{library}": library,
    "onnxruntime/LICENSE": "LICENSE",
    "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
}
with zipfile.ZipFile(wheel) as archive:
    for member, name in members.items():
        with archive.open(member) as source, open(f"{folder}/{name}", "wb") as target:
            shutil.copyfileobj(source, target)
END

files=("$library" LICENSE ThirdPartyNotices.txt)
(cd -- "$temporary" && sha256sum -- "${files[@]}" >"$checksums" && ln -s -- "$library" "$link")
# On disk before the checksums are: after a power failure these must not vouch for an empty file.
(cd -- "$temporary" && sync -- "${files[@]}" "$checksums")
for file in "${files[@]}" "$link" "$checksums"; do
  mv -fT -- "$temporary/$file" "$file"
done
# What an earlier pin left behind.
find . -maxdepth 1 \( -name '.fetched-*' ! -name "$checksums" -o -name 'libonnxruntime.so.*' ! -name "$library" \) -delete
echo "$into/$link"

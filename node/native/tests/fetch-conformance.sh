#!/bin/sh
# Unpacks the ONNX 1.18.0 backend tests that core_onnx118.json lists into the folder that is given, as <kind>/<test>/.
# They come from an archive named by ONNX_CONFORMANCE_ARCHIVE, else from the PyPI wheel, pinned by its hash.
set -eu
target=$1
here=$(cd "$(dirname "$0")" && pwd)
[ -e "$target/complete" ] && exit 0
partial=$target.partial.$$
rm -rf "$partial"
mkdir -p "$partial"
trap 'rm -rf "$partial"' EXIT
if [ -n "${ONNX_CONFORMANCE_ARCHIVE:-}" ]; then
    tar xzf "$ONNX_CONFORMANCE_ARCHIVE" -C "$partial"
else
    # The wheel's tests are the same on every platform; one is pinned.
    echo "onnx==1.18.0 --hash=sha256:6acafb3823238bbe8f4340c7ac32fb218689442e074d797bee1c5c9a02fdae75" >"$partial/requirements"
    python3 -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 \
        --platform manylinux_2_17_x86_64 --require-hashes -r "$partial/requirements" -d "$partial"
    python3 - "$partial" "$here/data/core_onnx118.json" <<'PYTHON'
import glob, json, os, sys, zipfile
folder, names = sys.argv[1], set(json.load(open(sys.argv[2])))
prefix = "onnx/backend/test/data/"
with zipfile.ZipFile(glob.glob(folder + "/*.whl")[0]) as wheel:
    for entry in wheel.namelist():
        name = entry.removeprefix(prefix)
        if entry.startswith(prefix) and not entry.endswith("/") and "/".join(name.split("/")[:2]) in names:
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "wb").write(wheel.read(entry))
PYTHON
    rm -f "$partial"/*.whl "$partial/requirements"
fi
touch "$partial/complete"
rm -rf "$target"
# Another run may have been first.
mv "$partial" "$target" 2>/dev/null || [ -e "$target/complete" ]

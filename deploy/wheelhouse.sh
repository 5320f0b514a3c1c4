#!/bin/bash
# Fetches all that `install.sh --wheelhouse DIR` needs on a machine without a network. Run it in a checkout.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: deploy/wheelhouse.sh DIR [--python VERSION]... [--arch ARCH]...

Puts edgefer and the packages it needs into DIR, as wheels.
  --python VERSION   3.10 (Ubuntu 22.04, JetPack 6), 3.11 (bookworm), 3.13 (trixie); all three otherwise
  --arch ARCH        aarch64 or x86_64; both otherwise
The system's packages (python3-venv, python3-picamera2) come from apt: install them while there is a network.
TEXT
}

fail() { echo "wheelhouse.sh: $1" >&2; exit "${2:-64}"; }

source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder='' pythons=() arches=()
while (($#)); do
    case "$1" in
    -h | --help) usage; exit ;;
    --python) pythons+=("${2:?--python takes a version}"); shift ;;
    --arch) arches+=("${2:?--arch takes an architecture}"); shift ;;
    -*) fail "unknown option $1; see --help" ;;
    *) [[ -z $folder ]] || fail "one folder only; see --help"; folder=$1 ;;
    esac
    shift
done
[[ -n $folder ]] || { usage >&2; exit 64; }
((${#pythons[@]})) || pythons=(3.10 3.11 3.13)
((${#arches[@]})) || arches=(x86_64 aarch64)
mkdir -p "$folder"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || fail "Python's venv module is missing: sudo apt install python3-venv" 69
pip=("$work/venv/bin/pip" --quiet --disable-pip-version-check)
# An older pip takes the wrong wheels, or none, for another machine.
"${pip[@]}" install 'pip>=25'

echo "Building edgefer's wheel"
rm -f "$folder"/edgefer-*.whl
"${pip[@]}" wheel --no-deps --wheel-dir "$folder" "$source_folder"
wheel=$(echo "$folder"/edgefer-*.whl)

# fetch ARCH PYTHON PACKAGE...: all the platforms up to the oldest of our systems' C library, that of Ubuntu 22.04.
fetch() {
    local arch=$1 python=$2 options=() minor
    shift 2
    for ((minor = 17; minor <= 35; minor++)); do options+=(--platform "manylinux_2_${minor}_$arch"); done
    "${pip[@]}" download --only-binary=:all: --implementation cp --python-version "$python" \
        --platform "manylinux2014_$arch" "${options[@]}" --dest "$folder" "$@"
}

for arch in "${arches[@]}"; do
    for python in "${pythons[@]}"; do
        echo "Fetching wheels for Python $python on $arch"
        fetch "$arch" "$python" "${wheel}[seal]"
        if [[ $arch-$python == aarch64-3.11 ]]; then
            echo "Fetching what stands beside bookworm's picamera2, which needs numpy 1"
            fetch "$arch" "$python" "${wheel}[seal]" 'numpy<2' 'opencv-python-headless<4.12'
        fi
    done
done
du -sh "$folder"

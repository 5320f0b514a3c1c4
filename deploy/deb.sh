#!/bin/bash
# Builds dist/edgefer_VERSION_ARCH.deb: install.sh with everything it needs. `make deb` runs it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: deploy/deb.sh [--python VERSION] [--arch ARCH]

  --python VERSION   the Python of the system it is for: 3.11 (bookworm), 3.13 (trixie), 3.10 (Ubuntu 22.04); this one's otherwise
  --arch ARCH        aarch64 or x86_64; this machine's otherwise
DEBFULLNAME and DEBEMAIL name who maintains the package.
TEXT
}

fail() { echo "deb.sh: $1" >&2; exit "${2:-64}"; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
arch=$(uname -m)
while (($#)); do
    case "$1" in
    -h | --help) usage; exit ;;
    --python) python=${2:?--python takes a version}; shift ;;
    --arch) arch=${2:?--arch takes an architecture}; shift ;;
    *) fail "unknown option $1; see --help" ;;
    esac
    shift
done
case "$arch" in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) fail "unknown architecture $arch: x86_64 or aarch64" ;;
esac
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/../pyproject.toml")-1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
# put MODE FILE PATH: with the folders above it readable by all, whatever this shell's umask.
umask 022
put() { install -D -m "$1" "$2" "$root/$3"; }

mkdir -p "$root/usr/share/edgefer/wheels" "$root/usr/bin"
"$here/wheelhouse.sh" "$root/usr/share/edgefer/wheels" --python "$python" --arch "$arch"
chmod 644 "$root/usr/share/edgefer/wheels"/*
put 755 "$here/install.sh" usr/share/edgefer/install.sh
put 755 "$here/command.py" usr/share/edgefer/command.py
put 644 "$here/edgefer.service" lib/systemd/system/edgefer.service
ln -s /lib/systemd/system/edgefer.service "$root/usr/share/edgefer/edgefer.service"
ln -s /opt/edgefer/current/edgefer "$root/usr/bin/edgefer"
put 644 "$here/sysusers.conf" usr/lib/sysusers.d/edgefer.conf
put 600 "$here/edgefer.env" etc/edgefer/edgefer.env
put 644 "$here/debian/copyright" usr/share/doc/edgefer/copyright
put 644 "$here/debian/lintian-overrides" usr/share/lintian/overrides/edgefer

maintainer="${DEBFULLNAME:-edgefer} <${DEBEMAIL:-edgefer@localhost}>"
doc=$root/usr/share/doc/edgefer
gzip -9n < "$here/../CHANGELOG.md" > "$doc/changelog.gz"
printf 'edgefer (%s) stable; urgency=medium\n\n  * What is new: changelog.gz.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(date -R)" | gzip -9n > "$doc/changelog.Debian.gz"
mkdir -p "$root/usr/share/man/man1"
gzip -9n < "$here/debian/edgefer.1" > "$root/usr/share/man/man1/edgefer.1.gz"
for script in preinst postinst prerm postrm; do put 755 "$here/debian/$script" "DEBIAN/$script"; done
echo /etc/edgefer/edgefer.env > "$root/DEBIAN/conffiles"
(cd "$root" && find etc lib usr -type f -exec md5sum {} +) > "$root/DEBIAN/md5sums"
sed -e "s|@VERSION@|$version|" -e "s|@ARCHITECTURE@|$architecture|" -e "s|@MAINTAINER@|$maintainer|" \
    -e "s|@PYTHON@|$python|" -e "s|@NEXT_PYTHON@|3.$((${python#3.} + 1))|" \
    -e "s|@SIZE@|$(du -sk "$root" | cut -f 1)|" "$here/debian/control" > "$root/DEBIAN/control"
mkdir -p "$here/../dist"
# Wheels are compressed already.
dpkg-deb --root-owner-group -Zgzip -z1 --build "$root" "$here/../dist/edgefer_${version}_$architecture.deb"

#!/bin/bash
# Installs edgefer as a systemd service, upgrades it, removes it: `sudo deploy/install.sh`; see --help and docs/install.md.
set -euo pipefail
umask 022 # the service's user has to read the program

usage() {
    cat <<'TEXT'
usage: sudo deploy/install.sh [--dry-run] [--wheelhouse DIR]
       sudo deploy/install.sh --uninstall [--purge] [--dry-run]

Installs or upgrades edgefer: Raspberry Pi OS and Debian (bookworm, trixie), Ubuntu for Jetson (JetPack 6).
  --wheelhouse DIR   take every Python package from DIR (made by deploy/wheelhouse.sh), none from the network
  --uninstall        remove the service; people and settings stay
  --purge            with --uninstall: remove people, settings and the user too
  --dry-run          say each step, and do none; needs no root
An upgrade is examined before it takes over; where it fails, or its service doesn't start, the former version goes on.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
versions=/opt/edgefer
current=$versions/current
settings=/etc/edgefer
state=/var/lib/edgefer
command=/usr/local/bin/edgefer
unit=/etc/systemd/system/edgefer.service
sysusers=/etc/sysusers.d/edgefer.conf

dry_run=no uninstall=no purge=no packaged=no wheelhouse=''
new='' former='' system_packages=no

main() {
    read_options "$@"
    check_machine
    if [[ $uninstall == yes ]]; then
        uninstall
        return
    fi
    if [[ $packaged == yes ]]; then
        if is_installed python3-picamera2; then system_packages=yes; fi
    else
        install_system_packages
        step "Make the user edgefer, in the groups video and render" make_user
        step "Make $settings, keeping the settings that are there" make_settings
    fi
    step "Make $state for the people and waiting events, readable by the service only" make_state
    find_python_packages
    name_version
    trap remove_unfinished EXIT
    step "Install $source_name into $new" build_version
    step "Examine the new version (edgefer doctor --offline)" examine_version
    step "Let the service and the command edgefer use it" activate "$new"
    start_service
    trap - EXIT
    step "Remove versions older than the former one" remove_old_versions
    finish
}

read_options() {
    while (($#)); do
        case "$1" in
        -h | --help) usage; exit ;;
        --dry-run) dry_run=yes ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        --wheelhouse) [[ -n ${2-} ]] || fail "--wheelhouse takes a folder" 64; wheelhouse=$2; shift ;;
        # For the Debian package, which has put the unit, the user's and the settings' files in place itself.
        --packaged) packaged=yes wheelhouse=$here/wheels ;;
        *) fail "unknown option $1; see --help" 64 ;;
        esac
        shift
    done
    [[ $purge == no || $uninstall == yes ]] || fail "--purge goes with --uninstall; see --help" 64
    if [[ -n $wheelhouse ]]; then
        [[ -d $wheelhouse ]] || fail "there is no folder $wheelhouse: make it with deploy/wheelhouse.sh" 66
        wheelhouse=$(cd "$wheelhouse" && pwd)
    fi
}

check_machine() {
    [[ $dry_run == yes || $(id -u) == 0 ]] || fail "this changes the system: run it with sudo, or see what it would do with --dry-run" 64
    if [[ $packaged == no ]] && dpkg-query -W -f '${db:Status-Status}' edgefer 2>/dev/null | grep -qx installed; then
        fail "edgefer is installed as a Debian package: upgrade or remove it with apt" 64
    fi
    [[ $uninstall == no ]] || return 0
    case "$(uname -m)" in
    x86_64 | aarch64) ;;
    *) fail "$(uname -m) isn't supported: a 64-bit system is needed (on a Raspberry Pi, its 64-bit OS)" 69 ;;
    esac
    [[ ! -x /usr/bin/python3 ]] || /usr/bin/python3 -c 'import sys; sys.exit(sys.maxsize < 2**32)' ||
        fail "this system is of 32 bits, on a 64-bit kernel: a 64-bit system is needed (on a Raspberry Pi, its 64-bit OS)" 69
    [[ -x /usr/bin/systemctl ]] || fail "this system has no systemd; README.md, under Use, tells how to run edgefer without" 69
    [[ ! -x /usr/bin/python3 ]] || /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$(/usr/bin/python3 --version) is too old, 3.10 is needed: a newer system (bookworm, JetPack 6)" 69
}

install_system_packages() {
    local wanted=(python3-venv) missing=()
    if [[ -n $(apt-cache madison python3-picamera2 2>/dev/null) ]] || is_installed python3-picamera2; then
        wanted+=(python3-picamera2)
        system_packages=yes
    fi
    for package in "${wanted[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    if ((${#missing[@]})); then
        step "Install ${missing[*]} through apt" install_through_apt "${missing[@]}"
    else
        say "${wanted[*]}: there already"
    fi
}

is_installed() {
    dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed
}

install_through_apt() {
    local install=(apt-get install -y -qq --no-install-recommends "$@")
    export DEBIAN_FRONTEND=noninteractive
    "${install[@]}" >/dev/null || { apt-get update -qq && "${install[@]}" >/dev/null; } ||
        fail "apt couldn't install $*: without a network, install them beforehand" 69
}

make_user() {
    install -D -m 644 "$here/sysusers.conf" "$sysusers"
    systemd-sysusers "$sysusers"
}

make_settings() {
    install -d -m 755 "$settings"
    install -d -m 700 "$settings/credentials"
    [[ -e $settings/edgefer.env ]] || install -m 600 "$here/edgefer.env" "$settings/edgefer.env"
}

make_state() {
    install -d -o edgefer -g edgefer -m 700 "$state"
}

# Sets what pip shall install, and its options.
find_python_packages() {
    local found
    pip_options=(--quiet --disable-pip-version-check --no-input --no-cache-dir)
    [[ -z $wheelhouse ]] || pip_options+=(--no-index --find-links "$wheelhouse")
    for folder in "$wheelhouse" "$here" "$here/.."; do
        [[ -n $folder ]] || continue
        found=$(find "$folder" -maxdepth 1 -name 'edgefer-*-py3-none-any.whl' | sort -V | tail -n 1)
        [[ -z $found ]] || break
    done
    if [[ -n $found ]]; then
        source=$found
        version=$(basename "$found" | cut -d - -f 2)
        source_name=$(basename "$found")
    elif [[ -f $here/../pyproject.toml ]]; then
        source=$(dirname "$here")
        version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$source/pyproject.toml")
        source_name="edgefer $version of $source"
    else
        fail "neither a checkout nor an edgefer-*.whl is beside $here${wheelhouse:+ or in $wheelhouse}" 66
    fi
    # What apt's picamera2 is built against stays: numpy 2 breaks it on bookworm.
    constraints=()
    if [[ $system_packages == yes ]] && has_numpy_1; then constraints=('numpy<2' 'opencv-python-headless<4.12'); fi
}

has_numpy_1() {
    if [[ $dry_run == yes ]] && ! is_installed python3-numpy; then
        grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release
    else
        /usr/bin/python3 -I -c 'import numpy, sys; sys.exit(numpy.__version__ >= "2")' 2>/dev/null
    fi
}

# /opt/edgefer/VERSION-N: an environment can't be moved, so each has the name that it keeps.
name_version() {
    local number=1
    while [[ -e $versions/$version-$number ]]; do number=$((number + 1)); done
    new=$versions/$version-$number
    # A link that leads nowhere, to a folder that somebody has removed, is no version to go back to.
    if [[ -d $current ]]; then former=$(readlink -f "$current"); fi
}

build_version() {
    local venv_options=()
    # picamera2 comes from apt: the environment has to see it.
    if [[ $system_packages == yes ]]; then venv_options+=(--system-site-packages); fi
    mkdir -p "$versions"
    /usr/bin/python3 -I -m venv "${venv_options[@]}" "$new"
    "$new/bin/pip" install "${pip_options[@]}" "${source}[seal]" "${constraints[@]}" ||
        fail "pip couldn't install edgefer (above); without a network, use --wheelhouse" 69
    install -m 755 "$here/command.py" "$new/edgefer"
    install -m 644 "$here/edgefer.service" "$new/edgefer.service"
}

examine_version() {
    "$new/edgefer" doctor --offline ||
        fail "the new version doesn't work here (above)${former:+; the former one goes on: ${former##*/}}" 1
}

# activate VERSION: the link changes at once, so that no moment is without a version.
activate() {
    ln -sfn "$1" "$current.new"
    mv -T "$current.new" "$current"
    if [[ $packaged == no ]]; then
        install -D -m 644 "$1/edgefer.service" "$unit"
        ln -sfn "$current/edgefer" "$command"
    fi
    ! has_systemd || systemctl daemon-reload
}

start_service() {
    if [[ -n $former ]] && ! systemctl --quiet is-enabled edgefer; then
        if systemctl --quiet is-active edgefer; then step "Restart the service" restart; fi
        say "The service is disabled, and stays so: sudo systemctl enable --now edgefer"
        return
    fi
    step "Let the service start with the machine" systemctl --quiet enable edgefer
    if has_systemd; then
        step "Start the service" restart
    else
        say "systemd doesn't run here: the service starts with the machine"
    fi
}

restart() {
    ! systemctl restart edgefer || return 0
    journalctl --quiet --no-pager -u edgefer -n 20 >&2 || true
    if [[ -z $former ]]; then
        trap - EXIT # what is there may be mended: mostly it's a setting
        fail "the service doesn't start (above): sudo edgefer doctor says more; then sudo systemctl restart edgefer" 1
    fi
    activate "$former"
    systemctl restart edgefer ||
        fail "neither the new version's service starts (above) nor the former one's, ${former##*/}: sudo edgefer doctor says more" 1
    fail "the service of the new version doesn't start (above); the former one goes on: ${former##*/}" 1
}

has_systemd() { [[ -d /run/systemd/system ]]; }

# However this ends before the new version is in use: what is half made goes.
remove_unfinished() {
    [[ $dry_run == yes || ! -e $new || $(readlink -f "$current") == "$new" ]] || rm -rf "$new"
}

remove_old_versions() {
    for folder in "$versions"/*-*; do
        [[ $folder == "$new" || $(readlink -f "$folder") == "$former" ]] || rm -rf "$folder"
    done
}

finish() {
    [[ $packaged == no && $dry_run == no ]] || return 0
    say "edgefer $version is installed. Settings: $settings/edgefer.env. What works: sudo edgefer doctor. Its log: journalctl -u edgefer"
}

uninstall() {
    if systemctl --quiet is-enabled edgefer 2>/dev/null || systemctl --quiet is-active edgefer 2>/dev/null || [[ -e $unit ]]; then
        step "Stop and disable the service" stop_service
    fi
    step "Remove $versions" rm -rf "$versions"
    [[ $packaged == no ]] || return 0 # the rest is the package's
    step "Remove the command, the unit and the user's entry" rm -f "$command" "$unit" "$sysusers"
    if has_systemd; then step "Tell systemd" systemctl daemon-reload; fi
    if [[ $purge == yes ]]; then
        step "Remove the people, the settings and the user" purge
    else
        say "Left: $state (people), $settings (settings) and the user edgefer; --purge removes them too"
    fi
}

stop_service() {
    ! has_systemd || systemctl stop edgefer
    systemctl --quiet disable edgefer
}

purge() {
    rm -rf "$state" "$settings" "$unit.d"
    ! id edgefer >/dev/null 2>&1 || userdel edgefer
}

# step WHAT COMMAND...: says what is done in one line, and does it.
step() {
    say "$1"
    shift
    [[ $dry_run == yes ]] || "$@"
}

say() { if [[ $dry_run == yes ]]; then echo "would: $1"; else echo "$1"; fi; }

fail() {
    echo "install.sh: $1" >&2
    exit "$2"
}

main "$@"

#!/bin/sh
# Sees to what pip can't install: `need.sh venv` (Python's venv module), and for the tests `need.sh mosquitto` (a broker),
# `shellcheck`, `systemd` (its checks of the unit).
# Installs it through apt where it is missing and that is allowed; else says what to do.
set -eu

case "$1" in
venv) package=python3-venv; "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null && exit 0 ;;
mosquitto) package=mosquitto; PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null && exit 0 ;;
shellcheck) package=shellcheck; command -v shellcheck >/dev/null && exit 0 ;;
systemd) package=systemd; command -v systemd-analyze >/dev/null && exit 0 ;;
*) echo "usage: need.sh venv | mosquitto | shellcheck | systemd" >&2; exit 64 ;;
esac

if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else sudo=none; fi
if [ "$sudo" != none ] && command -v apt-get >/dev/null; then
    echo "installing $package through apt"
    # --no-install-recommends, and no daemon: the tests start brokers of their own.
    $sudo apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
        { $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends "$package" >/dev/null; } || true
fi
case "$1" in
venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: sudo apt install $package" >&2; exit 69; } ;;
shellcheck | systemd) dpkg-query -W "$package" >/dev/null 2>&1 || echo "$package is missing (sudo apt install $package): the tests that need it are skipped" ;;
mosquitto) PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null || echo "mosquitto is missing (sudo apt install mosquitto): the tests that need a broker are skipped" ;;
esac

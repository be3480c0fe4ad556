#!/usr/bin/env bash
# Install the Debian/Ubuntu packages that the demo and the tests use, when root and when apt is there.
#
#   scripts/install_system_packages.sh          the demo's: its data set and the virtual board
#   scripts/install_system_packages.sh --test   also a browser for the report's tests, other shells and an old adb for the
#                                               devices', sshd and PostgreSQL (the tests start their own servers)
#   scripts/install_system_packages.sh --arm    also qemu, for board:arm64 and board:armhf; --test does this, too
#
# edgekit itself needs none of them. Without root or apt this says what is missing and succeeds: the demo then
# uses other data and leaves the board out, and the tests that need them are skipped with a reason.
set -euo pipefail

packages=(mmdebstrap iproute2 debian-archive-keyring dataset-fashion-mnist)
if [[ ${1:-} == --test ]]; then
  packages+=(chromium mksh busybox openssh-server adb postgresql)
fi

with_arm=no
if [[ ${1:-} == --test || ${1:-} == --arm ]]; then
  with_arm=yes
  packages+=(qemu-user-static)
fi

# The kernel starts ARM programs through qemu once it is told so. Where systemd runs, installing the package does it.
register_handlers() {
  local place=/proc/sys/fs/binfmt_misc name definition
  [[ $with_arm == yes && $EUID -eq 0 && $(uname -m) == x86_64 && -e /usr/lib/binfmt.d/qemu-aarch64.conf ]] || return 0
  if [[ ! -e $place/register ]] && ! mount -t binfmt_misc binfmt_misc $place 2>/dev/null; then
    echo "no ARM boards: the kernel does not let binfmt_misc be mounted (in a container, do this on its host)"
    return 0
  fi
  for name in qemu-aarch64 qemu-arm; do
    definition=/usr/lib/binfmt.d/$name.conf
    if [[ ! -e $place/$name ]] && ! cat "$definition" >"$place/register"; then
      echo "no ARM boards: the kernel refused the handler $name"
    fi
  done
}

missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
    missing+=("$package")
  fi
done
if ((${#missing[@]} == 0)); then
  register_handlers
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "system packages not installed (no apt-get here): ${missing[*]}"
  exit 0
fi
if ((EUID != 0)); then
  echo "system packages not installed (not root): ${missing[*]}"
  echo "  to have them: sudo apt-get install ${missing[*]}"
  exit 0
fi

echo "installing system packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null || echo "apt-get update failed; going on with the lists that are there"
# Debian starts what it installs: no sshd may listen on a machine because edgekit was tested there.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy && -d ${policy%/*} ]]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
for package in "${missing[@]}"; do
  # one by one, so that a package this release lacks does not take the others with it
  apt-get install -y -q --no-install-recommends "$package" >/dev/null ||
    echo "could not install $package; what needs it is left out"
done
if [[ " ${missing[*]} " == *" openssh-server "* ]] && command -v systemctl >/dev/null; then
  systemctl disable -q ssh.service ssh.socket 2>/dev/null || true  # and none after the next boot either
fi
register_handlers

#!/usr/bin/env bash
# Brings a fresh Debian or Ubuntu machine to the point where everything in this repository can run:
# Debian packages that are missing, the virtual environment .venv, and this project installed in it.
# Safe to repeat: what is already there is left alone, and a second run takes well under a second.
# PYTHON names another Python than the machine's, VENV another place for its environment.
#
#   tests/lab/setup.sh          everything
#   tests/lab/setup.sh rootless everything, and engines that run without root
#   tests/lab/setup.sh venv     only the virtual environment (no root needed): enough for checks and unit tests
#   tests/lab/setup.sh fresh    only what `make fresh` needs to make another system
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scope=${1:-all}
rootless=no
[ "$scope" != rootless ] || { scope=all rootless=yes; }
venv=${VENV:-.venv}
mkdir -p .lab

python_needed="Python 3.11 or newer is needed, and this distribution's python3 is older: install one and try again"
[ -z "${PYTHON:-}" ] || python_needed="PYTHON=$PYTHON is not there, does not run, or is older than 3.11: name another one"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# sudo may ask for its password where somebody can type one
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; elif [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
}

need_root() {
  [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && as_root true 2>/dev/null; } ||
    fail "missing Debian packages:$* -- run this as root or with sudo, or install them yourself, then try again"
}

# --- What the installation needs -----------------------------------------------------------------------------

# Docker's own packages and Debian's exclude each other: apt would take away what somebody chose.
check_other_engines() {
  case " $* " in *" docker.io "*) ;; *) return 0 ;; esac
  local package
  for package in docker-ce-cli containerd.io; do
    ! is_installed "$package" ||
      fail "Docker's own package $package is here, and its engine is not: apt-get install docker-ce, then try again"
  done
  ! is_installed podman-docker ||
    fail "podman-docker stands in the place of Docker here: remove it (apt-get remove podman-docker), then try again"
}

is_installed() {
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]
}

# The engine's images, the environments and the lab's folders, as measured for `make demo` and `make test`.
check_space() {
  local wanted=$1 place free
  for place in . /var/lib; do
    free=$(df -Pk "$place" | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge "$wanted" ] ||
      fail "only $free GiB are free at $(cd "$place" && pwd); $wanted GiB are needed: make room, then try again"
  done
}

# Names the cause in a log of apt-get or pip, where it is one that a person can do something about.
cause_in() {
  if grep -qiE 'no space left on device' "$1"; then
    echo "the disk is full"
  elif grep -qiE 'temporary failure|could not resolve|unable to connect|cannot initiate the connection|NewConnectionError|network is unreachable|connection refused|name resolution|connection timed out' "$1"; then
    echo "the package sources are not reached: is there a network, or a proxy or mirror to set?"
  elif grep -qiE 'could not get lock|unable to acquire the dpkg' "$1"; then
    echo "another installation is under way: wait until it has ended"
  else
    echo "its log says why"
  fi
}

# --- Debian packages -----------------------------------------------------------------------------------------

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

# Looks for what a package provides, not for the package: the same thing may come from elsewhere
# (Docker's own packages, a Python built by hand). A docker command without dockerd is only a client.
missing_packages() {
  local python
  [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  python=$(find_python) || [ -n "${PYTHON:-}" ] || { echo python3; echo python3-venv; }
  [ -z "$python" ] || "$python" -c 'import venv, ensurepip' 2>/dev/null || venv_package "$python"
  if [ "$scope" = fresh ]; then
    have mmdebstrap || echo mmdebstrap
    have ip || echo iproute2
    have iptables || echo iptables
    have git || echo git
  fi
  [ "$scope" = all ] || return 0
  have dockerd || echo docker.io
  have iptables || echo iptables
  have nft || echo nftables
  have ip || echo iproute2
  have ps || echo procps
  have docker-registry || echo docker-registry
  have mmdebstrap || echo mmdebstrap
  # mmdebstrap makes a root of Debian 12 on any release, Ubuntu too
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || echo debian-archive-keyring
  have setfacl || echo acl
  have mkfs.ext4 || echo e2fsprogs
  have mount || echo mount
  [ "$rootless" = no ] || rootless_packages
  have squid || echo squid
  have ssh || echo openssh-client
  have sshd || echo openssh-server
  compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || echo postgresql
}

rootless_packages() {
  have podman || { echo podman; echo netavark; }
  have rootlesskit || echo rootlesskit
  have slirp4netns || echo slirp4netns
  have newuidmap || echo uidmap
  have runc || echo runc
}

venv_package() {
  local name
  name=$(basename "$1")
  echo "$name-venv"
}

have() {
  PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1
}

# Services of the packages must not start by themselves: a registry on port 5000 would be a stranger's listener,
# and where there is no systemd the attempt fails. tests/lab/engine.py starts the engine when one is wanted.
hold_services() {
  [ ! -e /usr/sbin/policy-rc.d ] || return 0
  trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
  as_root chmod 755 /usr/sbin/policy-rc.d
}

# The tests start their own, on addresses of their own. A secure shell that was there before is left alone.
disable_services() {
  [ -d /run/systemd/system ] || return 0
  local service
  for service in docker-registry squid openssh-server:ssh postgresql; do
    case " $* " in *" ${service%%:*} "*) as_root systemctl disable --now "${service##*:}" >/dev/null 2>&1 || true ;; esac
  done
}

install_packages() {
  local packages=("$@")
  command -v apt-get >/dev/null || fail "this machine has no apt-get; install the equivalents of: ${packages[*]}"
  check_other_engines "${packages[@]}"
  need_root " ${packages[*]}"
  local started=$SECONDS
  say "installing ${#packages[@]} Debian packages on this machine, about a minute: ${packages[*]}"
  hold_services
  as_root apt-get -qq update >.lab/apt.log 2>&1 ||
    say "apt-get update failed: $(cause_in .lab/apt.log) (.lab/apt.log); going on with the lists at hand"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${packages[@]}" \
    >>.lab/apt.log 2>&1 </dev/null || say "apt-get install failed: $(cause_in .lab/apt.log) (.lab/apt.log)"
  disable_services "${packages[@]}"
  say "Debian packages: done in $((SECONDS - started)) s"
}

ensure_packages() {
  local wanted
  mapfile -t wanted < <(missing_packages)
  [ "${#wanted[@]}" -gt 0 ] || return 0
  install_packages "${wanted[@]}"
  find_python >/dev/null || fail "$python_needed"
  # What counts is what is there now, not what apt-get's exit code was: a service that cannot start is no failure.
  mapfile -t wanted < <(missing_packages)
  [ "${#wanted[@]}" -eq 0 ] ||
    fail "still missing after the installation: ${wanted[*]} -- $(cause_in .lab/apt.log) (.lab/apt.log)"
}

# --- Virtual environment -------------------------------------------------------------------------------------

ensure_venv() {
  local python made_with stamp
  python=$(find_python) || fail "$python_needed"
  # An environment belongs to the Python it was made with: packages of another one are not found or do not load.
  made_with=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.base_prefix)')
  if [ "$(cat "$venv/.python" 2>/dev/null)" != "$made_with" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
    # Whatever the lab installs is found out by this pip, which takes a third of the time that Python's own may take.
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25' ||
      say "pip stays as Python brought it along, which works and is slower"
    printf '%s' "$made_with" >"$venv/.python"
  fi
  stamp="$("$venv/bin/python" --version) $(pwd) $(sha256sum <pyproject.toml)"
  [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ] || return 0
  local started=$SECONDS
  say "installing this project and its development tools into $PWD/$venv, about a minute"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check -e '.[dev,compute]' 2>.lab/pip.log ||
    fail "pip could not install the project: $(cause_in .lab/pip.log) (.lab/pip.log)"
  say "environment: done in $((SECONDS - started)) s"
  printf '%s' "$stamp" >"$venv/.stamp"
}

main() {
  # Two commands started at once must not install at once.
  exec 9>.lab/setup.lock
  flock 9
  [ -x "$venv/bin/python" ] || check_space "$([ "$scope" = all ] && echo 8 || echo 2)"
  ensure_packages
  ensure_venv
}

# tests/unit/test_lab_setup.py reads the functions only
[ "${BASH_SOURCE[0]}" != "$0" ] || main

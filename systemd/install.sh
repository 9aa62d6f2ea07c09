#!/bin/sh
# Puts the agent on this machine as a systemd service, or takes it away again. Safe to repeat: what exists is brought up to
# date, configurations and state are never touched.
#
#   systemd/install.sh install      from this checkout (make install)
#   systemd/install.sh uninstall    keeps /etc/node-agent, /var/lib/node-agent and the user (make uninstall)
#
# PYTHON names the interpreter of the service when the one found first shall not be it.
set -eu
umask 022
cd "$(dirname "$0")/.."

prefix=/opt/node-agent
command=/usr/local/bin/node-agent
unit=/etc/systemd/system/node-agent@.service
configurations=/etc/node-agent
state=/var/lib/node-agent
user=node-agent
engine_group=docker

say() { printf 'install: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

# --- what the machine must have --------------------------------------------------------------------------------

need_root() {
  [ "$(id -u)" -eq 0 ] || fail "this needs root: run it with sudo"
}

# Only the system's own places: an interpreter in somebody's home would be out of the service's reach.
find_python() {
  for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if PATH=/usr/local/bin:/usr/bin:/bin "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      PATH=/usr/local/bin:/usr/bin:/bin command -v "$name"
      return 0
    fi
  done
  fail "Python 3.11 or newer is missing in /usr/bin and /usr/local/bin: apt-get install python3 python3-venv"
}

need_venv() {
  "$1" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$1 cannot make virtual environments: apt-get install python3-venv"
}

need_nft() {
  PATH="$PATH:/usr/sbin:/sbin" command -v nft >/dev/null ||
    fail "the program nft is missing, which closes this machine to algorithms: apt-get install nftables"
}

# --- the parts -------------------------------------------------------------------------------------------------

ensure_user() {
  getent group "$user" >/dev/null || groupadd --system "$user"
  getent passwd "$user" >/dev/null ||
    useradd --system --gid "$user" --home-dir "$state" --no-create-home --shell /usr/sbin/nologin \
      --comment "node agent" "$user"
}

ensure_folders() {
  install -d -m 0750 -o root -g "$user" "$configurations"
  install -d -m 0700 -o "$user" -g "$user" "$state"
}

ensure_example() {
  [ -e "$configurations/example.yaml" ] ||
    install -m 0640 -o root -g "$user" systemd/example.yaml "$configurations/example.yaml"
}

# Built from a copy, so that nothing is written into the checkout and nothing old in it is packed.
ensure_program() {
  python=$1
  "$prefix/bin/python" -c 'import pip' 2>/dev/null || "$python" -m venv --clear "$prefix"
  source=$(mktemp -d)
  trap 'rm -rf "$source"' EXIT
  cp -R pyproject.toml README.md node_agent "$source"
  [ ! -e LICENSE ] || cp LICENSE "$source"
  "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore "$source[compute]" ||
    fail "pip could not install the agent; its message stands above"
  ln -sfn "$prefix/bin/node-agent" "$command"
}

ensure_unit() {
  install -d -m 0755 "$(dirname "$unit")"
  install -m 0644 "systemd/$(basename "$unit")" "$unit"
  reload
}

reload() {
  [ ! -d /run/systemd/system ] || systemctl daemon-reload
}

instances() {
  [ -d /run/systemd/system ] || return 0
  systemctl list-units --plain --no-legend --state=active,activating,reloading,deactivating 'node-agent@*' |
    cut -d ' ' -f 1
}

# --- the two commands ------------------------------------------------------------------------------------------

install_all() {
  need_root
  need_nft
  python=$(find_python)
  need_venv "$python"
  ensure_user
  ensure_folders
  ensure_example
  ensure_program "$python"
  ensure_unit
  say "$("$command" --version) is installed"
  say_what_is_next
}

say_what_is_next() {
  getent group "$engine_group" >/dev/null ||
    say "there is no group '$engine_group' yet: install Docker Engine 20.10 or newer before the first start"
  if [ -n "$(instances)" ]; then
    say "running now, with the earlier version:" "$(instances | tr '\n' ' ')"
    say "take the new one up, algorithms run on meanwhile: systemctl restart 'node-agent@*'"
    return 0
  fi
  say "next: cp -p $configurations/example.yaml $configurations/alpha.yaml, correct it, systemctl enable --now node-agent@alpha"
}

uninstall_all() {
  need_root
  running=$(instances | tr '\n' ' ')
  [ -z "$running" ] || fail "still running: $running-- stop them first: systemctl disable --now 'node-agent@*'"
  [ ! -x "$command" ] || remove_networks
  rm -f "$command" "$unit"
  rm -rf "$prefix"
  reload
  say "removed; kept: $configurations, $state, and the user $user"
}

remove_networks() {
  for file in "$configurations"/*.yaml; do
    [ -e "$file" ] && [ "$file" != "$configurations/example.yaml" ] || continue
    "$command" network remove -c "$file" >&2 ||
      say "the isolated network of $file is still there; see: docker network ls"
  done
}

case "${1-}" in
  install) install_all ;;
  uninstall) uninstall_all ;;
  *)
    say "usage: systemd/install.sh install|uninstall"
    exit 64
    ;;
esac

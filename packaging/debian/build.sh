#!/bin/sh
# Makes dist/node-agent_VERSION_ARCHITECTURE.deb from this checkout (make deb): the program with everything it stands on,
# its unit, and the examples. No root needed. Built for the distribution and the processor it is built on, since some of
# what it stands on is compiled for one version of Python.
#
#   VERSION         the package's version, when it shall not be the program's own
#   SYSTEM_PYTHON   the distribution's interpreter, when it is not /usr/bin/python3
#   OUT             where the package goes (dist)
#   WORK            where it is put together, and what takes long is kept for the next time (build/deb)
set -eu
umask 022
cd "$(dirname "$0")/../.."

parts=packaging/debian
out=${OUT:-dist}
work=${WORK:-build/deb}
python=${SYSTEM_PYTHON:-/usr/bin/python3}
# pip itself, of any Python: it works for the interpreter it is told.
pip() { .venv/bin/python -m pip --python "$python" --disable-pip-version-check "$@"; }

say() { printf 'deb: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

need_tools() {
  command -v dpkg-deb >/dev/null || fail "dpkg-deb is missing: a Debian package is made on Debian or Ubuntu"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$python is not Python 3.11 or newer: apt-get install python3, or name another one (SYSTEM_PYTHON=/usr/bin/python3.12)"
  case "$(command -v "$python")" in
    /usr/bin/*) ;;
    *) fail "$python is not the distribution's (/usr/bin/…): the package could not find it where it is installed" ;;
  esac
}

# Debian sorts 1.0rc1 after 1.0; with a tilde it comes before.
program_version() {
  sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1 | sed 's/\.\{0,1\}\(a\|b\|rc\|dev\)\([0-9]\)/~\1\2/'
}

# --- what the program stands on: fetched and compiled once, used again until pyproject.toml, Python or this script
# changes ------

ensure_dependencies() {
  stamp="$("$python" -VV) $(cat pyproject.toml "$parts/build.sh" | sha256sum)"
  [ "$(cat "$dependencies.stamp" 2>/dev/null)" != "$stamp" ] || return 0
  say "fetching what the agent stands on for Python $minor"
  rm -rf "$dependencies" "$dependencies.stamp"
  "$python" -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["compute"], sep="\n")' \
    >"$work/requirements.txt"
  pip install -qq --no-compile --only-binary :all: --target "$dependencies" -r "$work/requirements.txt" ||
    fail "pip could not fetch what the agent stands on; its message stands above"
  (cd "$dependencies" && rm -rf bin pyarrow/include pyarrow/src)
  find "$dependencies" -type d -name tests -prune -exec rm -rf {} +
  # wheels come with all kinds of modes; nothing of this is started by itself
  find "$dependencies" -type f -exec chmod 0644 {} +
  compile "$dependencies"
  printf '%s' "$stamp" >"$dependencies.stamp"
}

# Compiled code is part of the package and not judged by the age of its source: nothing is written where it is installed.
compile() {
  "$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$1" -p "/$site" "$1" ||
    fail "Python could not compile $1; its message stands above"
}

# A wheel names the oldest C library it works with; the package needs the newest of those.
needed_c_library() {
  for wheel in "$dependencies"/*.dist-info/WHEEL; do
    grep -o 'manylinux_2_[0-9]*' "$wheel" | sort -V | head -n 1
  done | sed 's/manylinux_2_/2./' | sort -V | tail -n 1
}

# --- the tree of the package ---------------------------------------------------------------------------------------

# A virtual environment in the distribution's own Python, written by hand: no part of it names the machine it was made on.
stage_program() {
  install -d "$tree/$home/bin" "$tree/$home/lib/python$minor" "$tree/usr/bin"
  printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$tree/$home/pyvenv.cfg"
  ln -s "/usr/bin/python$minor" "$tree/$home/bin/python$minor"
  ln -s "python$minor" "$tree/$home/bin/python"
  cp -Rl "$dependencies" "$tree/$site"
  stage_agent
  install -m 0755 "$parts/node-agent" "$tree/$home/bin/node-agent"
  ln -s ../lib/node-agent/bin/node-agent "$tree/usr/bin/node-agent"
}

# Built from a copy, so that nothing is written into the checkout and nothing old in it is packed.
stage_agent() {
  rm -rf "$work/source" "$work/agent"
  mkdir "$work/source"
  cp -R pyproject.toml README.md LICENSE node_agent "$work/source"
  find "$work/source" -name __pycache__ -type d -prune -exec rm -rf {} +
  pip install -qq --no-compile --no-deps --target "$work/agent" "$work/source" ||
    fail "pip could not build the agent; its message stands above"
  rm -rf "$work/agent/bin" "$work/agent"/*.dist-info/direct_url.json
  compile "$work/agent"
  cp -R "$work/agent/." "$tree/$site"
}

stage_unit() {
  install -d "$tree/usr/lib/systemd/system"
  sed 's#/usr/local/bin/node-agent#/usr/bin/node-agent#' "systemd/$unit" >"$tree/usr/lib/systemd/system/$unit"
  ! grep -n '/usr/local\|/opt/' "$tree/usr/lib/systemd/system/$unit" ||
    fail "systemd/$unit names a place that the package does not have; it stands above"
}

stage_documents() {
  install -d "$tree/$documents/examples"
  install -m 0644 systemd/example.yaml "$tree/$documents/examples/service.yaml"
  for example in configs/*.yaml; do
    # compose.yaml is for the image
    [ "$example" = configs/compose.yaml ] || install -m 0644 "$example" "$tree/$documents/examples"
  done
  install -m 0644 "$parts/copyright" "$tree/$documents/copyright"
  sed -e "s/@VERSION@/$version/" -e "s/@DATE@/$(date -R -u -d "@$SOURCE_DATE_EPOCH")/" "$parts/changelog" |
    gzip -9n >"$tree/$documents/changelog.gz"
  gzip -9nc CHANGELOG.md >"$tree/$documents/CHANGELOG.md.gz"
  install -d "$tree/usr/share/lintian/overrides"
  install -m 0644 "$parts/lintian-overrides" "$tree/usr/share/lintian/overrides/node-agent"
}

stage_control() {
  install -d "$tree/DEBIAN"
  for script in preinst postinst prerm postrm; do
    install -m 0755 "$parts/$script" "$tree/DEBIAN/$script"
  done
  (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
  sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@PYTHON@/$minor/" \
    -e "s/@NEXT_PYTHON@/3.$((${minor#3.} + 1))/" -e "s/@C_LIBRARY@/$(needed_c_library)/" \
    -e "s/@SIZE@/$(du -sk "$tree/usr" | cut -f 1)/" "$parts/control" >"$tree/DEBIAN/control"
}

# --- all of it -----------------------------------------------------------------------------------------------------

need_tools
# Files are no newer than the last commit, so that the same checkout gives the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
architecture=$(dpkg --print-architecture)
version=${VERSION:-$(program_version)}
unit=node-agent@.service
home=usr/lib/node-agent
site=$home/lib/python$minor/site-packages
documents=usr/share/doc/node-agent
dependencies=$work/python$minor
tree=$work/tree
package=$out/node-agent_${version}_$architecture.deb

mkdir -p "$work" "$out"
rm -rf "$tree"
ensure_dependencies
stage_program
stage_unit
stage_documents
stage_control
dpkg-deb --root-owner-group -Zzstd -z5 --build "$tree" "$package" >/dev/null
rm -rf "$tree"
say "$package is made, for Python $minor as this distribution has it"

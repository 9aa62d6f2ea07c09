#!/usr/bin/env bash
# Runs the unit tests on each supported Python that this machine has, one after the other, and prints a line for each.
# Fails when the tests of any fail; a Python that is missing is named and is no failure.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
make=${MAKE:-make}
failed=0
mkdir -p .lab

# On the path, or among the versions that pyenv keeps; there the name on the path may stand for none of them.
find_version() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/"python$1"; do
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

for version in 3.11 3.12 3.13 3.14; do
  if ! python=$(find_version "$version"); then
    printf '%s  missing: no python%s on this machine\n' "$version" "$version"
    continue
  fi
  log=.lab/unit-$version.log
  if "$make" --no-print-directory unit PYTHON="$python" >"$log" 2>&1; then
    printf '%s  ok: %s  (%s)\n' "$version" "$(tail -n 1 "$log" | tr -d '=')" "$python"
  else
    failed=1
    printf '%s  FAILED, the whole of it is in %s:\n' "$version" "$log"
    tail -n 20 "$log" | sed 's/^/      /'
  fi
done
exit "$failed"

#!/usr/bin/env bash
# Makes .venv with this project (editable), everything it can use, and the tools of its tests. A second run is instant.
#
#   scripts/install-python.sh             torch is the CPU build: the one that pip finds, else that of PyTorch's own index
#   TORCH=cuda scripts/install-python.sh  takes whatever torch pip finds; on Linux x86_64 that is a CUDA build of gigabytes
#
# To change from one build of torch to the other, remove .venv first.
# PYTHON=/path/to/python3.12 picks the interpreter.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly venv=.venv oldest_python="(3, 11)"
# PyPI has no CPU build of torch for Linux on x86_64; PyTorch's own index has.
readonly cpu_index=https://download.pytorch.org/whl/cpu

fail() {
  printf 'install-python: %s\n' "$@" >&2
  exit 1
}

is_new_enough() {
  "$1" -c "import sys; sys.exit(sys.version_info < $oldest_python)" 2>/dev/null
}

# The interpreter to build the environment with.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if is_new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed, and ${PYTHON:-python3} is not: install it, or name one with PYTHON=/path/to/python3.12."
}

# Runs a command as root: directly or through sudo; fails where neither is possible.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    sudo "$@"
  else
    return 1
  fi
}

# Debian and Ubuntu keep venv and pip out of python3; bare images keep python3 out as well.
install_missing_packages() {
  local packages=(python3 python3-venv)
  ! python3 -c "import ensurepip, venv" 2>/dev/null || return 0
  command -v apt-get >/dev/null || return 0
  echo "Installing ${packages[*]}"
  as_root sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${packages[*]}" ||
    fail "Python's venv module is missing. As root, run" "  apt-get install ${packages[*]}" "and then this again."
}

# What the environment was made from: a change in any of it calls for a new installation.
fingerprint() {
  { cat pyproject.toml constraints.txt && "$venv/bin/python" --version && pwd; } |
    "$venv/bin/python" -c "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
}

is_up_to_date() {
  [ -r "$venv/installed-from" ] && is_new_enough "$venv/bin/python" && [ "$(fingerprint)" = "$(cat "$venv/installed-from")" ]
}

create_venv() {
  local python
  ! is_new_enough "$venv/bin/python" || return 0
  [ -n "${PYTHON:-}" ] || install_missing_packages
  python=$(find_python)
  echo "Creating $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv" || fail "$python could not make a virtual environment: is its venv module installed?"
}

pip_install() {
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt "$@"
}

# Installs torch before anything can pull it in: left to itself, pip takes the newest CUDA build with all of its libraries.
install_torch() {
  local torch
  torch=$(grep -x 'torch==.*' constraints.txt)
  ! "$venv/bin/python" -c "import importlib.metadata as m; v = m.version('torch'); assert 'torch==' + v.split('+')[0] == '$torch'" 2>/dev/null ||
    return 0
  if [ -z "${TORCH:-}" ] && is_linux_x86_64; then
    echo "Installing $torch+cpu: a download of about 200 MB"
    ! install_cpu_torch "$torch+cpu" || return 0
    echo "There is no CPU build at $cpu_index either. Installing $torch, the CUDA build: a download of about 3 GB"
  else
    echo "Installing $torch"
  fi
  pip_install "$torch"
}

# The CPU build from where pip looks, else from PyTorch's index; fails where neither has it.
install_cpu_torch() {
  local log
  ! log=$(pip_install "$1" 2>&1) || return 0
  if ! grep -qE "No matching distribution|ResolutionImpossible" <<<"$log"; then
    echo "$log" >&2
    fail "torch could not be installed: pip's message is above."
  fi
  echo "pip finds no CPU build where it is set to look; looking at $cpu_index"
  pip_install --retries 1 --extra-index-url "$cpu_index" "$1" 2>/dev/null
}

is_linux_x86_64() {
  [ "$(uname -sm)" = "Linux x86_64" ]
}

main() {
  # make may start this twice at once; the second waits and finds the work done.
  if command -v flock >/dev/null; then
    exec 9<scripts/install-python.sh
    flock 9
  fi
  ! is_up_to_date || return 0
  create_venv
  rm -f "$venv/installed-from"
  install_torch
  echo "Installing callipper-db and its dependencies into $venv: one to three minutes"
  pip_install --editable ".[all,dev]"
  fingerprint >"$venv/installed-from"
  echo "$venv is ready: $("$venv/bin/python" --version), $(grep -x 'torch==.*' constraints.txt)"
}

case "${TORCH:-}" in
  "" | cuda | any) main ;;
  *) fail "TORCH=$TORCH is not known: leave it out for the CPU build, or set TORCH=cuda or TORCH=any." ;;
esac

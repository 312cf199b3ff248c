#!/usr/bin/env bash
# Installs Chromium for the tests of the map's page, where none is found. Instant when there is one.
set -euo pipefail

! command -v chromium chromium-browser google-chrome >/dev/null || exit 0
command -v apt-get >/dev/null || {
  echo "install-chromium: install Chromium, so that the command chromium is found" >&2
  exit 1
}
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)
echo "Installing chromium"
"${root[@]}" sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium"

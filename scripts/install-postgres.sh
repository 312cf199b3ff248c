#!/usr/bin/env bash
# Installs PostgreSQL >= 15, PostGIS 3 and pgvector on Debian or Ubuntu. Starts no server, keeps what is there.
#
#   scripts/install-postgres.sh           as root, or as a user who may use sudo
#   scripts/install-postgres.sh --print   only shows the commands
#   scripts/install-postgres.sh --pgbouncer   also installs PgBouncer, which only the tests use
#
# PGVECTOR_MIN=0.8.3 asks for a newer pgvector than the default minimum and builds it from source if need be.
set -euo pipefail

readonly min_postgres=15 suggested_vector=0.8.3
readonly min_vector=${PGVECTOR_MIN:-0.7}
readonly policy=/usr/sbin/policy-rc.d # where Debian's packages ask whether they may start their services
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1

print_only=false
pgbouncer="" # or the option that asks for it
scratch=""

fail() {
  printf 'install-postgres: %s\n' "$@" >&2
  exit 1
}

# Shows a command in a form that can be pasted, and runs it unless --print was given.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  $print_only || "$@"
}

# at_least 0.8.7 0.7: is the first version the second or newer?
at_least() {
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# The newest server that is installed and new enough, as the path of its pg_config; nothing if there is none.
find_pg_config() {
  local candidate major best="" best_major=0
  for candidate in /usr/lib/postgresql/*/bin/pg_config "$(command -v pg_config || true)"; do
    [ -x "$candidate" ] || continue
    [ -x "$("$candidate" --bindir)/postgres" ] || continue
    major=$("$candidate" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
    if [ "$major" -ge "$min_postgres" ] && [ "$major" -gt "$best_major" ]; then
      best=$candidate best_major=$major
    fi
  done
  echo "$best"
}

# The version that CREATE EXTENSION would install, from the control file; nothing if the extension is not there.
extension_version() {
  local control
  control=$("$1" --sharedir)/extension/$2.control
  [ ! -r "$control" ] || sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" "$control"
}

has_postgis() {
  [ -n "$(extension_version "$1" postgis)" ]
}

has_vector() {
  local version
  version=$(extension_version "$1" vector)
  [ -n "$version" ] && at_least "$version" "$min_vector"
}

# Debian keeps it where only root's PATH leads.
has_pgbouncer() {
  [ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null
}

# Says what is installed; succeeds only if nothing is missing.
everything_there() {
  local pg_config vector
  pg_config=$(find_pg_config)
  [ -n "$pg_config" ] && has_postgis "$pg_config" && has_vector "$pg_config" || return 1
  [ -z "$pgbouncer" ] || has_pgbouncer || return 1
  vector=$(extension_version "$pg_config" vector)
  echo "$("$pg_config" --version), PostGIS $(extension_version "$pg_config" postgis), pgvector $vector: ready"
  at_least "$vector" "$suggested_vector" ||
    echo "pgvector before $suggested_vector can crash in parallel HNSW builds; PGVECTOR_MIN=$suggested_vector $0 looks for a newer one"
}

# Carries on as root: directly, through sudo, or not at all.
become_root() {
  [ "$(id -u)" -ne 0 ] || return 0
  if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    exec sudo env PGVECTOR_MIN="$min_vector" bash "$0" ${pgbouncer:+"$pgbouncer"}
  fi
  echo "This needs root, and there is no sudo that can be used here. As root, run" >&2
  echo "  bash $(realpath "$0")${pgbouncer:+ $pgbouncer}" >&2
  echo "which does:" >&2
  print_only=true
  install_all >&2
  exit 1
}

apt_install() {
  run apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"
}

# The upstream version that apt would install of a package; nothing if it has none.
apt_version() {
  apt-cache policy "$1" 2>/dev/null | sed -nE 's/^ *Candidate: ([0-9]+:)?([0-9][0-9.]*).*/\2/p'
}

# Installs the distribution's server. Debian would also create and start a cluster; that is the user's to decide.
install_server() {
  local version dir=/etc/postgresql-common/createcluster.d
  local no_cluster=$dir/callipper.conf
  version=$(apt_version postgresql)
  if [ -z "$version" ]; then
    $print_only || fail "apt offers no postgresql package. Check /etc/apt/sources.list and its neighbours."
  elif ! at_least "$version" "$min_postgres"; then
    fail "apt offers PostgreSQL $version, but $min_postgres or newer is needed." \
      "Use Debian 12, Ubuntu 24.04 or newer, or add the PostgreSQL project's own apt repository."
  fi
  apt_install postgresql-common
  run mkdir -p "$dir"
  run sh -c "echo create_main_cluster = false >$no_cluster"
  apt_install postgresql
  run rm "$no_cluster"
}

# Writes a source list of another suite on the machine's own mirror, with the key that apt already trusts for it.
# $1 is the suite, $2 the file to write, without its ending.
write_source_list() {
  local codename components
  # shellcheck source=/dev/null
  codename=$(. /etc/os-release && echo "${UBUNTU_CODENAME:-$VERSION_CODENAME}")
  components=$(is_ubuntu && echo "main universe" || echo main)
  local suites="($codename|stable|testing|unstable|sid)"
  { cat /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } | sed '/^#/d' |
    awk -v RS= -v suites="(^|[ \n])Suites:([^\n]* )?$suites( |\n|$)" -v suite="$1" -v components="$components" '
      $0 ~ suites && /(^|\n)Types:[^\n]*deb/ && /(^|\n)Components:[^\n]*main/ && !/(^|\n)Enabled: *no/ {
        sub(/Types:[^\n]*/, "Types: deb-src")
        sub(/Suites:[^\n]*/, "Suites: " suite)
        sub(/Components:[^\n]*/, "Components: " components)
        print
        exit
      }' >"$2.sources"
  [ ! -s "$2.sources" ] || return 0
  rm "$2.sources"
  { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
    sed -nE "s/^deb[ \t]+(\[[^]]*\][ \t]+)?([^ \t]+)[ \t]+${suites}[ \t].*\<main\>.*/deb-src \1\2 $1 $components/p" |
    head -n 1 >"$2.list"
  [ -s "$2.list" ] || fail "no line of $codename in apt's sources to derive a source list from." "$(by_hand)"
}

is_ubuntu() {
  grep -qE '^(ID|ID_LIKE)=.*ubuntu' /etc/os-release
}

# What is left to a person when no way of this script leads to pgvector.
by_hand() {
  echo "Install pgvector $min_vector or newer by hand, as its README describes, and run this again."
}

# Fetches the newest pgvector source package into the scratch directory. The suites are read with an apt state of their
# own, so that the machine's apt keeps its sources and its lists; apt checks signatures and hashes as always.
fetch_vector_source() {
  local suite list suites="sid forky trixie" aside
  ! is_ubuntu || suites="devel resolute questing plucky"
  mkdir -p "$scratch/source"
  chown _apt "$scratch/source" 2>/dev/null || true # apt downloads as this user
  for suite in $suites; do
    write_source_list "$suite" "$scratch/$suite"
    list=$(ls "$scratch/$suite".*)
    mkdir -p "$scratch/$suite.lists/partial" "$scratch/$suite.cache/archives/partial"
    aside=(-o "Dir::Etc::sourcelist=$list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$scratch/$suite.lists"
      -o "Dir::Cache=$scratch/$suite.cache")
    run apt-get "${aside[@]}" update -qq || continue
    at_least "$(source_version "${aside[@]}")" "$min_vector" || continue
    (cd "$scratch/source" && run apt-get "${aside[@]}" source -qq --download-only pgvector) && return
    echo "# the mirror lists this version in $suite but does not have its files: trying an older suite"
  done
  fail "no suite of this machine's apt mirror has the source of pgvector $min_vector or newer." "$(by_hand)"
}

# The newest upstream version of the pgvector source package that apt sees with the given options; 0 if it sees none.
source_version() {
  apt-cache "$@" showsrc pgvector 2>/dev/null | sed -nE 's/^Version: ([0-9.]+).*/\1/p' | sort -V | tail -n 1 | grep . || echo 0
}

# Builds pgvector against the installed server. OPTFLAGS="" leaves out pgvector's -march=native: the result then runs on
# every processor of the architecture, as a virtual machine or an image that moves to another host must.
build_vector() {
  local pg_config=$1 major=$2
  apt_install "postgresql-server-dev-$major" build-essential dpkg-dev
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  chmod 755 "$scratch"
  fetch_vector_source
  # apt has already compared the files with the signed index; dpkg-source would ask for the uploader's own key.
  run dpkg-source --no-check -x "$scratch"/source/pgvector_*.dsc "$scratch/pgvector"
  run make -s -C "$scratch/pgvector" -j "$(nproc)" OPTFLAGS="" PG_CONFIG="$pg_config"
  run make -s -C "$scratch/pgvector" OPTFLAGS="" PG_CONFIG="$pg_config" install
}

# What build_vector does, for --print, where nothing may be fetched.
print_build_vector() {
  apt_install "postgresql-server-dev-$2" build-essential dpkg-dev
  echo "# then the newest pgvector source package of a newer suite of the same mirror, through a temporary source list:"
  run apt-get source --download-only pgvector
  run dpkg-source --no-check -x pgvector_VERSION.dsc pgvector
  run make -C pgvector OPTFLAGS="" PG_CONFIG="$1"
  run make -C pgvector OPTFLAGS="" PG_CONFIG="$1" install
}

# The packaged pgvector if it is new enough, else a build.
install_vector() {
  local pg_config=$1 major=$2 packaged
  packaged=$(apt_version "postgresql-$major-pgvector")
  if [ -n "$packaged" ] && at_least "$packaged" "$min_vector"; then
    apt_install "postgresql-$major-pgvector"
  elif $print_only; then
    print_build_vector "$pg_config" "$major"
  else
    build_vector "$pg_config" "$major"
  fi
}

# Installs the connection pooler. Debian would also start it, now and whenever the machine starts; that is the user's to
# decide.
install_pgbouncer() {
  if [ -e "$policy" ]; then
    apt_install pgbouncer
  else
    trap 'rm -f "$policy"' EXIT
    run sh -c "printf '#!/bin/sh\\nexit 101\\n' >$policy && chmod 755 $policy"
    apt_install pgbouncer
    run rm "$policy"
    trap - EXIT
  fi
  run update-rc.d pgbouncer disable
}

install_all() {
  local pg_config major
  run apt-get update -qq
  [ -n "$(find_pg_config)" ] || install_server
  pg_config=$(find_pg_config)
  if [ -n "$pg_config" ]; then
    major=$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
  else # only under --print, when the server is not there yet
    major=$(apt_version postgresql)
    major=${major:-NN} pg_config=/usr/lib/postgresql/$major/bin/pg_config
  fi
  has_postgis "$pg_config" 2>/dev/null || apt_install "postgresql-$major-postgis-3"
  has_vector "$pg_config" 2>/dev/null || install_vector "$pg_config" "$major"
  [ -z "$pgbouncer" ] || has_pgbouncer || install_pgbouncer
}

main() {
  local option
  for option in "$@"; do
    case "$option" in
      --print) print_only=true ;;
      --pgbouncer) pgbouncer=$option ;;
      *) fail "usage: $0 [--print] [--pgbouncer]" ;;
    esac
  done
  ! everything_there || return 0
  command -v apt-get >/dev/null ||
    fail "this script knows Debian and Ubuntu only. Install PostgreSQL >= $min_postgres, PostGIS >= 3.3 and pgvector >= $min_vector${pgbouncer:+, and PgBouncer}."
  if $print_only; then
    install_all
    return
  fi
  become_root
  echo "Installing PostgreSQL, PostGIS and pgvector: one to five minutes"
  install_all
  everything_there || fail "the packages are installed, but their files are not where PostgreSQL looks for them."
}

main "$@"

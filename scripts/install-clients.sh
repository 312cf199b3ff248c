#!/usr/bin/env bash
# Installs the clients that tests/compat opens: QGIS, GDAL and Java with PostgreSQL's driver from Debian; dbt and Superset
# in environments of their own (build/compat), because their packages do not go together with this project's. About 2 GB and ten
# minutes; instant when all is there.
set -euo pipefail

cd "$(dirname "$0")/.."
packages=()
# Says that a package is missing unless a file of it is there.
need() {
  [ -e "$2" ] || packages+=("$1")
}
need python3-qgis /usr/lib/python3/dist-packages/qgis/core/__init__.py
need gdal-bin /usr/bin/ogr2ogr
need libpostgresql-jdbc-java /usr/share/java/postgresql.jar
command -v java >/dev/null || packages+=(default-jre-headless)
if [ ${#packages[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || {
    echo "install-clients: this installs Debian's packages (${packages[*]}), and there is no apt-get here" >&2
    exit 1
  }
  root=()
  [ "$(id -u)" -eq 0 ] || root=(sudo)
  echo "Installing ${packages[*]}"
  "${root[@]}" sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${packages[*]}"
fi

# install NAME REQUIREMENT...: an environment with these requirements, made anew unless it is complete.
install() {
  local folder=build/compat/$1
  shift
  [ "$(cat "$folder/complete" 2>/dev/null)" != "$*" ] || return 0
  echo "Installing $1 into $folder"
  .venv/bin/python -m venv --clear "$folder"
  "$folder/bin/python" -m pip install --quiet "$@"
  echo "$*" >"$folder/complete"
}
# Newer versions of dbt download a part of themselves while they are installed.
install dbt 'dbt-core==1.10.*' 'dbt-postgres<1.11'
# Superset 6.1 does not run with newer versions of Flask-Caching, and does not ask for cachetools and rich, which it imports.
install superset 'apache-superset==6.1.*' 'flask-caching==2.3.1' cachetools rich psycopg2-binary

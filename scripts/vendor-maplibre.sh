#!/usr/bin/env bash
# Fetches the map library of the page from the npm registry, and checks that it is the one that is meant. Its files are part of
# the repository, so that nobody needs npm or a network to install or run the map; this script is for the next version of it.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly version=6.17.0
readonly integrity=sha512-2chIZwpLGenoUQOcnm9Pk4SLbA8ppNFq8jlpXiq9vcYm3Y1wJ3fc82FL0GLwBaPYJCLzPv/mC46KEupVov75rQ==
readonly target=callipper_db/web/static/vendor/maplibre-gl

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm pack --silent --pack-destination "$work" "maplibre-gl@$version" >/dev/null
found=sha512-$(openssl dgst -sha512 -binary "$work/maplibre-gl-$version.tgz" | base64 -w 0)
if [ "$found" != "$integrity" ]; then
  echo "vendor-maplibre: the package has the hash $found, and $integrity is expected" >&2
  exit 1
fi
tar -xzf "$work/maplibre-gl-$version.tgz" -C "$work"
rm -rf "$target"
mkdir -p "$target"
cp "$work"/package/LICENSE.txt "$work"/package/dist/{maplibre-gl.mjs,maplibre-gl-worker.mjs,maplibre-gl.css} "$target"
sed -i '/^\/\/# sourceMappingURL=/d' "$target"/*.mjs  # a browser's tools would ask for the maps, which are not here
(cd "$target" && sha256sum -- LICENSE.txt *.mjs *.css >SHA256SUMS)
echo "maplibre-gl $version is in $target"

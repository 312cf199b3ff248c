#!/usr/bin/env bash
# Monaco from an OpenStreetMap extract to spatial-semantic queries, on the embedded PostgreSQL. Shows every command it runs.
set -euo pipefail

cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1
unset CALLIPPER_DSN
mkdir -p demo/out
stages=()

# Prints a command as one would type it, runs it, and remembers how long it took.
run() {
    local name=$1 started=$EPOCHREALTIME
    shift
    printf '\n\033[1m$'
    for word in "$@"; do
        if [[ $word == *[[:space:]]* ]]; then printf ' "%s"' "$word"; else printf ' %s' "$word"; fi
    done
    printf '\033[0m\n'
    "$@"
    stages+=("$(printf '%-22s %5.1f s' "$name" "$(echo "$started $EPOCHREALTIME" | awk '{print $2 - $1}')")")
}

run "start and set up" callipper-db init
run "load" callipper-db load demo/monaco.osm.pbf --rejects demo/out/rejects.csv
run "train and publish" callipper-db train --grid-size 25
run "ask: supermarket" callipper-db query supermarket -k 5
run "ask: where to eat" callipper-db query 'somewhere to eat' -k 5
run "ask, inside a box" callipper-db query 'museum' -k 5 --within 7.415,43.725,7.43,43.735
run "any text, in SQL" callipper-db server psql -c "SELECT cell_id, ST_AsText(ST_Centroid(geom), 4) AS centre, relevant, because
       FROM search('buy fresh bread', 5)"
run "what is it like there" callipper-db server psql -c "SELECT text, pois, round(lift::numeric, 1) AS lift, because
       FROM describe(ST_SetSRID(ST_Point(7.4276, 43.7396), 4326), 5)"
run "map" callipper-db plot 'somewhere to eat' -o demo/out/somewhere-to-eat.png

printf '\nHow long it took:\n'
printf '  %s\n' "${stages[@]}"
cat <<'END'

The map as a picture: demo/out/somewhere-to-eat.png. To go on (after: source .venv/bin/activate):
  callipper-db map --title Monaco                 look at the city: a page in your browser, with the reasons
  callipper-db query 'luxury shopping'            ask something else
  callipper-db server psql                        SQL: search('...'), cells, text_embed('...'), see docs/sql.md
  psql "$(callipper-db dsn)"                      the same from any client
  callipper-db load FILE; callipper-db train      your own POIs
  callipper-db server stop                        when you are done
END

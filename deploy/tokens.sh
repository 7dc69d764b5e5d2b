#!/bin/sh
# Makes the tokens that Grafana and Prometheus read Catchment with. Runs at each start, in the image of Catchment, with the
# data folder of api-1, which has the administrator's token.
set -eu

for reader in grafana prometheus; do
    file="/tokens/$reader/token"
    if [ -s "$file" ]; then
        continue
    fi
    catchment token create "$reader" --role reader --url http://api-1:8080 --data /admin > "$file.made"
    # It stands alone on the last line.
    tail -n 1 "$file.made" | tr -d '\n' > "$file.new"
    rm "$file.made"
    # Their users are others than ours; nobody else has the volume.
    chmod 0444 "$file.new"
    mv "$file.new" "$file"
    echo "the token of $reader is made"
done

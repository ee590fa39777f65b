#!/bin/sh
# Copies the alerts and dashboards of deploy/ into the chart, which can read only files inside itself. A test compares them.
set -eu
cd "$(dirname "$0")/.."
rm -rf helm/lading/files/rules.yaml helm/lading/files/dashboards
mkdir -p helm/lading/files/dashboards
[ ! -e prometheus/rules.yaml ] || cp prometheus/rules.yaml helm/lading/files/
for file in dashboards/*.json; do
    [ ! -e "$file" ] || cp "$file" helm/lading/files/dashboards/
done

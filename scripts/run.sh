#!/usr/bin/env bash
# Runs the release build with a simulated fleet until Ctrl-C, and says what to type next.
set -euo pipefail
listen=$1 data_dir=$2 fleet=$3
cd "$(dirname "$0")/.."
bin=target/release

ready=$(mktemp)
server='' devices=''
cleanup() {
    trap '' INT TERM
    [ -z "$devices" ] || kill "$devices" 2>/dev/null || true
    [ -z "$server" ] || kill -TERM "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" || true
    rm -f "$ready"
}
trap cleanup EXIT
trap 'exit 0' INT TERM

"$bin/fleetd" serve --listen "$listen" --data-dir "$data_dir" >"$ready" &
server=$!
until grep -q '^fleetd ready' "$ready"; do
    kill -0 "$server" 2>/dev/null || { wait "$server"; exit 1; }
    sleep 0.05
done
cat "$ready"
http=$(sed -nE 's/.* http=([^ ]+).*/\1/p' "$ready")
clickhouse=$(sed -nE 's/.* clickhouse=([^ ]+).*/\1/p' "$ready")

if [ "$fleet" -gt 0 ]; then
    # A fixed prefix and a key file, so that the next run goes on with the same devices.
    FLEETD_ADMIN_KEY=${FLEETD_ADMIN_KEY:-$(cat "$data_dir/admin.key")} "$bin/fleetd-loadtest" --url "$http" \
        --id-prefix sim --keys "$data_dir/simulated-fleet.keys" --devices "$fleet" --rate "$(((fleet + 9) / 10))" \
        --duration 8760h --threads 1 --take-updates --progress never >/dev/null &
    devices=$!
    echo "a fleet of $fleet simulated devices reports every 10 s and takes updates"
fi

cat <<TEXT

Try, in another terminal:

  # list devices
  curl -s -H "X-API-Key: \$(cat $data_dir/admin.key)" $http/fleetd.v1.DeviceService/ListDevices

  # register one of your own; the answer holds its key
  curl -s -H "X-API-Key: \$(cat $data_dir/admin.key)" -H 'Content-Type: application/json' \\
    -d '{"device_id":"my-device","device_type":"laptop"}' $http/fleetd.v1.DeviceService/RegisterDevice

  # heartbeats of the last minute, straight from ClickHouse
  curl -s $clickhouse --data "SELECT count(), uniq(device_id) FROM fleetd.heartbeats WHERE received_at > now() - 60"

  # roll a simulated update out to devices of its own, of which 8 % fail
  $bin/fleetd-loadtest rollout --url $http --key "\$(cat $data_dir/admin.key)" --interval 6s --fail 8%

Ctrl-C stops it. The data stays in $data_dir.
TEXT
wait "$server"

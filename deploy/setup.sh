#!/bin/sh
# Makes the file .env beside compose.yaml, with a password of its own for each service. Run once; keeps a file that is there.
set -eu
cd "$(dirname "$0")"

if [ -e .env ]; then
    echo "deploy/.env is there already and stays as it is"
    exit 0
fi

# Letters and digits only: they stand in URLs, XML and TOML as they are.
secret() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

umask 077
cat > .env.new <<END
# Secrets of compose.yaml. Readable by you only; not for version control.
POSTGRES_PASSWORD=$(secret)
CLICKHOUSE_PASSWORD=$(secret)
CLICKHOUSE_READER_PASSWORD=$(secret)
REDIS_PASSWORD=$(secret)
S3_ACCESS_KEY=$(secret | cut -c1-20)
S3_SECRET_KEY=$(secret)
GRAFANA_PASSWORD=$(secret)
# The name of the Kafka cluster: 16 bytes in base64url. Catchment refuses another cluster than the one it has offsets of.
KAFKA_CLUSTER_ID=C$(od -An -N15 -tx1 /dev/urandom | tr -d ' \n' | cut -c1-20)A

# Where the ports of devices and people are opened. Before this is anything but loopback: read "Opening it" in README.md.
BIND=127.0.0.1
# A network that is free on this machine, for the balancer and what is behind it.
EDGE_SUBNET=172.30.64.0/24
END
mv .env.new .env
echo "deploy/.env is made; Grafana's user admin has the password GRAFANA_PASSWORD in it"

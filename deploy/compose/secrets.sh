#!/bin/sh
# Writes .env for docker compose, once, with freshly drawn secrets, readable by its owner only.
set -eu
cd "$(dirname "$0")/../.."
[ -e .env ] && { echo ".env is there already: nothing changed" >&2; exit 1; }
hex() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
umask 077
cat > .env <<END
COMPOSE_PROFILES=core,airflow,monitoring
HONE_MODE=observe
POSTGRES_PASSWORD=$(hex)
HONE_TOKEN_KEYS=1:$(hex)
HONE_IDENTITY_KEY=$(hex)
HONE_ADMIN_KEY=hone-$(hex)
AIRFLOW_JWT_SECRET=$(hex)
AIRFLOW_FERNET_KEY=$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')
GRAFANA_ADMIN_PASSWORD=$(hex)
END
echo "wrote .env"

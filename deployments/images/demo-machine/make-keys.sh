#!/bin/sh
# Make the demonstration's SSH keys once, and pin the machines' host keys in the known_hosts of the movers.
#
# /keys/client             the movers' key pair and known_hosts, and the key that secrets of requests are sealed with
# /keys/api                the API's key and its own certificate for localhost
# /keys/alpha, /keys/beta  a machine's host key, and the client key that it accepts
set -eu
umask 077

if [ ! -e /keys/client/known_hosts ]; then
    mkdir -p /keys/client
    rm -f /keys/client/id_ed25519 /keys/client/id_ed25519.pub
    ssh-keygen -q -t ed25519 -N '' -C data-manager -f /keys/client/id_ed25519
    : >/keys/client/known_hosts.new
    for machine in alpha beta; do
        mkdir -p "/keys/$machine"
        rm -f "/keys/$machine/host_key" "/keys/$machine/host_key.pub"
        ssh-keygen -q -t ed25519 -N '' -C "$machine" -f "/keys/$machine/host_key"
        cp /keys/client/id_ed25519.pub "/keys/$machine/authorized_keys"
        chmod 755 "/keys/$machine"
        chmod 644 "/keys/$machine/authorized_keys"
        printf '%s %s\n' "$machine" "$(cut -d' ' -f1,2 "/keys/$machine/host_key.pub")" >>/keys/client/known_hosts.new
    done
    mv /keys/client/known_hosts.new /keys/client/known_hosts
fi
if [ ! -e /keys/client/secrets.key ]; then
    head -c 32 /dev/urandom | base64 | tr '+/' '-_' >/keys/client/secrets.new
    mv /keys/client/secrets.new /keys/client/secrets.key
fi
if [ ! -e /keys/api/api.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 825 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,DNS:api,IP:127.0.0.1 -keyout /keys/api/api.key -out /keys/api/api.new
    chmod 644 /keys/api/api.new
    mv /keys/api/api.new /keys/api/api.crt
fi
chmod 755 /keys /keys/api
chown -R 10001:10001 /keys/client /keys/api # the user dm of deployments/images/Dockerfile

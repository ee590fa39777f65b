#!/bin/sh
# Prints a Kubernetes secret for the chart: new passwords, the URL of each user, and the users for redis-server --aclfile.
#
#   sh deploy/redis/secret.sh rediss://redis.internal:6379/0 | kubectl -n lading create -f -
#
# The URL is that of the server, without user and password; what it has behind the database (?ssl_ca_certs=FILE) is kept. The name of
# the secret is lading-redis, or the second argument. Nothing is written to disk; the passwords are in the output alone.
set -eu

url=${1:?usage: secret.sh redis[s]://HOST:PORT/DB [NAME]}
name=${2:-lading-redis}
case $url in
redis://* | rediss://*) ;;
*) echo "secret.sh: $url: must begin with redis:// or rediss://" >&2 && exit 2 ;;
esac
case $url in
*@*) echo "secret.sh: the URL comes without user and password" >&2 && exit 2 ;;
esac
here=$(dirname "$0")
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

users='user default off
'
echo "apiVersion: v1
kind: Secret
metadata:
  name: $name
type: Opaque
stringData:"
for file in "$here"/*.acl; do
    user=$(basename "$file" .acl)
    secret=$(password)
    users="$users$(cat "$file") >$secret
"
    echo "  $user-password: $secret"
    echo "  $user-url: ${url%%://*}://$user:$secret@${url#*://}"
    [ "$user" != scheduler ] || scheduler=${url%%://*}://$user:$secret@${url#*://}
done
[ -e "$here/exporter.acl" ] || echo "  exporter-url: $scheduler"
secret=$(password)
users="${users}user admin on ~* &* +@all >$secret
"
echo "  admin-password: $secret"
echo "  users.acl: |"
printf '%s' "$users" | sed 's/^/    /'

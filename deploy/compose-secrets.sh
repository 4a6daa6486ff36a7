#!/usr/bin/env bash
# Makes the secret files that compose.yaml's profile `enrolled` mounts.
#
#   deploy/compose-secrets.sh ROOT_KEY [FOLDER] [HOST]
#
# ROOT_KEY  the root's private key, made before with `grid root init --root ROOT_KEY`; only read, and copied nowhere
# FOLDER    where to write, ./secrets unless given; made with mode 0700, so that other users of this machine stay out
# HOST      the name at which clients reach the gateway, localhost unless given; goes into its certificate
#
# GRID names the command `grid`, for example GRID="docker run --rm -i -v $PWD:$PWD -w $PWD localhost/grid".
# Files that exist stay: delete one to have it made anew. Enrols the nodes alice, bob and carol and a client, ann.
set -euo pipefail

root=${1:?"usage: deploy/compose-secrets.sh ROOT_KEY [FOLDER] [HOST]"}
folder=${2:-secrets}
host=${3:-localhost}
read -ra grid <<<"${GRID:-.venv/bin/grid}"
port=${GRID_TLS_PORT:-8443}

umask 077
mkdir -p "$folder"
chmod 0700 "$folder"

# write NAME COMMAND...: the command's output as a file, whole or not at all.
write() {
  local file=$folder/$1
  shift
  [[ -e $file ]] && return
  "$@" >"$file.new"
  chmod 0444 "$file.new"
  mv "$file.new" "$file"
  echo "made $file"
}

enroll() { "${grid[@]}" enroll "$1" --role "$2" --root "$root" --gateway "$3"; }

write root.pub "${grid[@]}" root show --root "$root"
write dashboard.token openssl rand -hex 24
for node in alice bob carol; do
  write "$node.token" enroll "$node" node wss://enrolled-gateway:8443
done
write ann.token enroll ann client "wss://$host:$port"

# A certificate authority of this grid's own, and the gateway's certificate under it. Where a public authority certifies HOST,
# put its files there instead: tls.crt (the chain), tls.key, and as ca.crt the authority's certificate.
if [[ ! -e $folder/tls.crt ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 825 -subj "/CN=grid authority" \
    -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$work/ca.key" -out "$work/ca.crt" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj "/CN=$host" \
    -keyout "$work/tls.key" -out "$work/tls.csr" 2>/dev/null
  names="DNS:enrolled-gateway,DNS:localhost,IP:127.0.0.1"
  if [[ $host =~ ^[0-9.]+$|: ]]; then names+=",IP:$host"; else names+=",DNS:$host"; fi
  printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nkeyUsage=digitalSignature\n' "$names" >"$work/ext"
  openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 397 \
    -extfile "$work/ext" -out "$work/tls.crt" 2>/dev/null
  write ca.crt cat "$work/ca.crt"
  write tls.key cat "$work/tls.key"
  write tls.crt cat "$work/tls.crt" # last: with it all three are there
fi

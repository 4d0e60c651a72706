#!/usr/bin/env bash
# What a machine of a cluster does: cluster.yaml and deploy/aws.yaml call this in the checkout.
#   deploy/node.sh install   Python environment, once for one pyproject.toml and constraints.txt
#   deploy/node.sh ray start ...   end what Ray runs on this machine, then start it
# Both read ~/.raysys.env where it is there: NAME=value lines of what storage asks for.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0

fail() {
  echo "$(hostname): $*" >&2
  exit 1
}

find_python() {
  local name
  for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
      2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "needs Python 3.11 to 3.13, has $(python3 --version 2>&1 || true)." \
    "Ubuntu 22.04: sudo apt-get install python3.11 python3.11-venv python3.11-dev;" \
    "or name one by PYTHON=/path/to/python in ~/.raysys.env"
}

read_settings() {
  if [ -f ~/.raysys.env ]; then
    [ "$(stat -c %a ~/.raysys.env)" = 600 ] || fail "others can read ~/.raysys.env: chmod 600 it"
    set -a
    . ~/.raysys.env
    set +a
  fi
}

install_once() {
  local python stamp path
  path="export PATH=\"$PWD/.venv/bin:\$PATH\""  # for `ray attach`, `ray exec` and `ray down`
  grep -qsxF "$path" ~/.bashrc || echo "$path" >>~/.bashrc
  stamp="$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)"
  if [ "$(cat .venv/.installed 2>/dev/null)" = "$stamp" ]; then
    echo "$(hostname): installed already"
    return
  fi
  python="$(find_python)"
  command -v g++ >/dev/null || fail "hnswlib is built from source: sudo apt-get install g++"
  "$python" -c 'import ensurepip' 2>/dev/null \
    || fail "$python has no venv: sudo apt-get install $(basename "$python")-venv"
  "$python" -m venv .venv
  # torch first and pinned: without a pin its newest build brings gigabytes of CUDA packages
  pip install --quiet --constraint constraints.txt torch
  pip install --quiet --constraint constraints.txt --editable .
  echo "$stamp" >.venv/.installed
  echo "$(hostname): installed with $("$python" --version)"
}

prepare_start() {  # of a node with address $1
  local device
  ulimit -n 65536 2>/dev/null || echo "$(hostname): open files stay at $(ulimit -n), 65536 are" \
    "needed under load: raise nofile in /etc/security/limits.conf" >&2
  if [ -f ~/.ray/auth_token ]; then
    chmod 600 ~/.ray/auth_token
    export RAY_AUTH_MODE=token
  fi
  # Gloo would take the address of the host's name, which is 127.0.1.1 on Debian and Ubuntu
  device="$(ip -o -4 addr show | awk -v it="$1" '{split($4, a, "/"); if (a[1] == it) print $2}')"
  if [ -n "$device" ]; then
    export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$device}"
    export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$device}"
  fi
  ray stop >/dev/null
}

source_address() {  # of packets to $1
  ip -4 -o route get "$1" | sed -n 's/.* src \([0-9.]*\).*/\1/p'
}

start_ray() {  # as the command line $@ says, with the address and the network of this machine
  local here="${RAY_CLOUD_INSTANCE_ID:-}"  # of a head whose provider is local: its address
  if [[ "$here" =~ ^[0-9]+(\.[0-9]+){3}$ ]]; then
    export RAY_enable_autoscaler_v2=0  # version 2 starts no worker of that provider
  else
    here="$(source_address "${RAY_HEAD_IP:-192.0.2.1}")"
  fi
  prepare_start "$here"
  exec "$@" --node-ip-address="$here"
}

read_settings
case "${1:-}" in
  install) install_once ;;
  ray) start_ray "$@" ;;
  *) fail "usage: deploy/node.sh install, or deploy/node.sh ray start ..." ;;
esac

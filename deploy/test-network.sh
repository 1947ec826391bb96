#!/usr/bin/env bash
# A cluster of hosts that the network fails: each process in a network namespace of its own, and a switch between them that cuts,
# loses and delays. Clients that stay must be answered all the time; whatever was acknowledged must be there once the network is
# whole again, and all must agree.
set -euo pipefail

usage() {
  cat <<'END'
usage: deploy/test-network.sh

Needs root, ip (iproute2), python3, and the binaries that `cargo build --workspace` makes. Runs three coordinators, two workers,
an operator and two clients in namespaces, for about two minutes:
  healthy    nothing fails
  minority   the leader, a worker and a client are cut off from all others
  one-way    the leader is not reached by anybody, and reaches all
  loss       a fifth of all frames is lost
  delay      each frame takes 200 ms
  paced      each frame takes 200 ms, and the coordinators' config says so: heartbeat_ms = 500
In each the operator goes on changing things and asking a model, each time by a new process, and the two clients go on asking, each
by one process all the time: `near` beside the operator, `far` with the worker of the minority. Prints how much came through, and
fails where
  - fewer changes are acknowledged than there must be
  - a request of the two clients fails, or they wait for an answer for too long
  - a client meets an older traffic revision than before, or two versions at one
  - coordinators and workers are not at one in time afterwards, or epoch or term went back
  - a change that was acknowledged is missing
  - a version pushed and rolled out after the healing does not come to be all that either worker answers either client

Environment:
  ROOST_NETWORK_LOGS  a folder that keeps the logs of all processes, and what each client met request by request
END
}

case ${1-} in
  "") ;;
  --help | -h)
    usage
    exit
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
for tool in ip python3; do
  command -v "$tool" >/dev/null || { echo "$tool is needed; on Debian: apt-get install iproute2 python3" >&2; exit 2; }
done
for binary in roost roost-node; do
  [[ -x $target/debug/$binary ]] || { echo "$target/debug/$binary is missing: cargo build --workspace" >&2; exit 2; }
done

hosts=(c1 c2 c3 w1 w2 op far)
# The seconds that each fault lasts, and that everything may take to agree afterwards.
fault_s=12
settle_s=60
# How long a client that stays may wait for an answer, at most:
# where it reaches both workers, no longer than a machine takes that is busy with other things;
no_silence_s=1
# where it may have asked a worker that is out of reach, until the connection is idle for 2 s and the other worker was asked;
dead_peer_s=3
# where packets are lost or late, until an attempt has had its half of the deadline of 10 s, and the other worker was asked.
attempt_s=6
image=$root/deploy/models/digits/heldout_images.npy
work=$(mktemp -d)
namespace=roost-$$
processes=()
# The process of each node.
declare -A running=()
# The seconds that the operator gives one command.
patience_s=4

cleanup() {
  local status=$?
  processes+=("${running[@]}")
  for process in "${processes[@]}"; do kill "$process" 2>/dev/null || true; done
  sleep 0.2
  for process in "${processes[@]}"; do kill -9 "$process" 2>/dev/null || true; done
  wait 2>/dev/null
  for host in "${hosts[@]}"; do ip netns del "$namespace-$host" 2>/dev/null || true; done
  if ((status != 0)); then
    for host in c1 c2 c3 w1 w2 near far; do
      echo "--- $host" >&2
      tail -n 15 "$work/$host.log" >&2 || true
    done
  fi
  [[ -z ${ROOST_NETWORK_LOGS-} ]] || cp -r "$work/." "$ROOST_NETWORK_LOGS"
  rm -rf "$work"
}
trap cleanup EXIT

on() {
  local host=$1
  shift
  ip netns exec "$namespace-$host" "$@"
}

# The command line on a host; its home is the folder with the profile.
roost_on() {
  local host=$1
  shift
  (cd "$work" && HOME=$work on "$host" "$target/debug/roost" "$@")
}

roost() {
  roost_on op "$@"
}

address() {
  case $1 in
    c?) echo "10.77.0.1${1#c}" ;;
    w?) echo "10.77.0.2${1#w}" ;;
    op) echo 10.77.0.31 ;;
    far) echo 10.77.0.32 ;;
  esac
}

make_network() {
  local host interfaces=()
  for host in "${hosts[@]}"; do
    ip netns add "$namespace-$host"
    ip link add "s$$-$host" type veth peer name eth0 netns "$namespace-$host"
    ip link set "s$$-$host" up
    ip -n "$namespace-$host" link set lo up
    ip -n "$namespace-$host" addr add "$(address "$host")/24" dev eth0
    ip -n "$namespace-$host" link set eth0 up
    on "$host" python3 "$root/deploy/network-switch.py" --stop-offloading eth0
    interfaces+=("$host=s$$-$host")
  done
  coproc switch { exec python3 "$root/deploy/network-switch.py" "${interfaces[@]}"; }
  processes+=("$switch_PID")
  exec {orders}>&"${switch[1]}" {answers}<&"${switch[0]}"
  read -r -t 10 -u "$answers" answer
  [[ $answer == ready ]]
}

order() {
  local answer
  echo "$*" >&"$orders"
  read -r -t 10 -u "$answers" answer
  [[ $answer == "done: $*" ]] || { echo "the switch: $answer" >&2; return 1; }
}

make_cluster() {
  local host kind nodes=()
  echo 'cluster = "network"' >"$work/cluster.toml"
  # Not in a namespace: it only writes files.
  (cd "$work" && "$target/debug/roost" certs init --cluster network --into certs >/dev/null)
  for host in c1 c2 c3 w1 w2; do
    [[ $host == c* ]] && kind=coordinator || kind=worker
    (cd "$work" && "$target/debug/roost" certs issue "$host" --roles "$kind" --ca certs >/dev/null)
    { echo "[[node]]"; echo "name = \"$host\""; echo "roles = [\"$kind\"]"; } >>"$work/cluster.toml"
    if [[ $kind == coordinator ]]; then
      echo "coordinator_address = \"$(address "$host"):7300\"" >>"$work/cluster.toml"
      nodes+=("\"$(address "$host"):7300\"")
    else
      echo "address = \"$(address "$host"):7400\"" >>"$work/cluster.toml"
      nodes+=("\"$(address "$host"):7400\"")
    fi
  done
  (cd "$work" && "$target/debug/roost" certs issue anna --roles operator,client --ca certs >/dev/null)
  cat >"$work/roost.toml" <<END
nodes = [$(IFS=,; echo "${nodes[*]}")]
ca = "certs/ca.pem"
certificate = "certs/anna.pem"
key = "certs/anna.key"
END
  for host in c1 c2 c3 w1 w2; do start_node "$host"; done
}

start_node() {
  ip netns exec "$namespace-$1" "$target/debug/roost-node" --config "$work/cluster.toml" --name "$1" >>"$work/$1.log" 2>&1 &
  running[$1]=$!
}

# Coordinators that are far apart need a longer pace. One restarts after the other, and clients are answered all the while.
set_heartbeat() {
  local host
  printf '[coordinator]\nheartbeat_ms = %s\n' "$1" >>"$work/cluster.toml"
  for host in c1 c2 c3; do
    kill "${running[$host]}"
    wait "${running[$host]}"
    start_node "$host"
    until_true $settle_s converged
  done
}

# stay NAME HOST: a client on a host that asks until the end.
stay() {
  local name=$1 host=$2
  (cd "$work" && HOME=$work exec ip netns exec "$namespace-$host" python3 "$root/deploy/network-client.py" "$work/$name.answers" \
    "$target/debug/roost" infer digits --input image="$image" --rows 0..1 --repeat 1000000 --output json) \
    >"$work/$name.log" 2>&1 &
  processes+=($!)
}

judge() {
  python3 "$root/deploy/network-check.py" "$@"
}

# until_true SECONDS COMMAND...: what the command says is told if it stays wrong. Its exit code 3 says that it always will.
until_true() {
  local deadline=$((SECONDS + $1)) status
  shift
  until "$@" >/dev/null 2>"$work/why"; do
    status=$?
    if ((SECONDS >= deadline || status == 3)); then
      echo "it did not come about: $*: $(cat "$work/why")" >&2
      return 1
    fi
    sleep 0.2
  done
}

# Coordinators and workers, as the leader knows them; what it says of epoch and term never goes back.
converged() {
  roost cluster status --timeout 5 --output json >"$work/status.json" || return 1
  roost cluster members list --timeout 5 --output json >"$work/members.json" || return 1
  judge converged "$work/status.json" "$work/members.json" "$work/seen.json"
}

leader() {
  roost cluster status --timeout 5 --output json |
    python3 -c 'import json, sys; leader = json.load(sys.stdin)["leader"]; print(leader) if leader else sys.exit("no leader")'
}

# Changes and questions until a moment; counts what came through.
operate() {
  local until=$1 said
  changed=0 refused=0 answered=0 failed=0
  while ((SECONDS < until)); do
    number=$((number + 1))
    if said=$(roost label set "digits@$version" "n-$number" --timeout "$patience_s" 2>&1); then
      changed=$((changed + 1))
      echo "n-$number" >>"$work/acknowledged"
    else
      refused=$((refused + 1))
      echo "n-$number: $said" >>"$work/refused"
    fi
    if roost infer digits --key "user-$number" --input image="$image" --rows 0..1 --timeout "$patience_s" \
      >/dev/null 2>>"$work/failed"; then
      answered=$((answered + 1))
    else
      failed=$((failed + 1))
    fi
  done
}

# Nothing that was acknowledged is missing; what a state may hold is bounded, so it is cleared for the next fault.
check_labels() {
  local label
  roost models --output json >"$work/models.json"
  judge labels "$work/models.json" "$work/acknowledged"
  while read -r label; do roost label remove digits "$label" >/dev/null; done <"$work/acknowledged"
  : >"$work/acknowledged"
}

# A change that can be seen from outside: the next version takes all traffic.
roll_out() {
  version=$((version + 1))
  roost push digits "$root/deploy/models/digits/v$((version % 2 + 1))" --new-version >/dev/null
  roost rollout start "digits@$version" --steps 100% >/dev/null
  until_true $settle_s judge reached "digits@$version" "$work/near.answers" "$work/far.answers"
  roost rollout promote digits >/dev/null
}

# The moment, as the logs of the clients have it.
now() {
  python3 -c 'import time; print(time.monotonic())'
}

# fault NAME LEAST-CHANGES LONGEST-SILENCE-S LEAST-SHARE ORDER...: the share is that of the answers while nothing fails; each order
# is one argument.
fault() {
  local name=$1 least=$2 silence_s=$3 share=$4 each begun since healed
  shift 4
  since=$(now)
  for each in "$@"; do order "$each"; done
  operate $((SECONDS + fault_s))
  healed=$(now)
  order heal
  begun=$SECONDS
  until_true $settle_s converged
  echo "$name: the operator: $changed changes acknowledged and $refused not, $answered requests answered and $failed not;" \
    "all at one $((SECONDS - begun)) s after it"
  check_labels
  roll_out
  judge answers "$name" "$silence_s" "$share" "$since" "$healed" "$work/rates.json" "$work/near.answers" "$work/far.answers"
  if ((changed < least)); then
    echo "$name: fewer than $least changes came through" >&2
    tail -n 3 "$work/refused" >&2
    return 1
  fi
  if ((answered == 0)); then
    echo "$name: no client that came meanwhile was answered" >&2
    tail -n 3 "$work/failed" >&2
    return 1
  fi
}

main() {
  local leads one other cuts=()
  number=0 version=1
  : >"$work/acknowledged"
  make_network
  make_cluster
  until_true $settle_s leader
  roost push digits "$root/deploy/models/digits/v1" >/dev/null
  until_true $settle_s converged
  stay near op
  stay far far
  until_true $settle_s judge reached digits@1 "$work/near.answers" "$work/far.answers"

  fault healthy 5 "$no_silence_s" 1 heal

  leads=$(leader)
  for one in "$leads" w1 far; do
    for other in "${hosts[@]}"; do
      case $other in "$leads" | w1 | far) ;; *) cuts+=("cut $one $other" "cut $other $one") ;; esac
    done
  done
  # Far from any leader, nobody says that w2 is out of reach: a client tries it anew each time that its suspicion ends, which it
  # holds for as long as a connection takes to be found dead.
  fault minority 1 "$dead_peer_s" 0.4 "${cuts[@]}"

  leads=$(leader) cuts=()
  for other in "${hosts[@]}"; do
    [[ $other == "$leads" ]] || cuts+=("cut $other $leads")
  done
  # No client needs a coordinator.
  fault one-way 1 "$no_silence_s" 0.8 "${cuts[@]}"

  fault loss 1 "$attempt_s" 0 "loss 0.2"

  # A command takes a dozen ways there and back, each of 0.4 s: it connects, learns who coordinates, and finds who leads.
  patience_s=10 fault_s=24
  fault delay 0 "$attempt_s" 0 "delay 200"
  set_heartbeat 500
  fault paced 1 "$attempt_s" 0 "delay 200"
  until_true $settle_s converged
}

main

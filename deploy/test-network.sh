#!/usr/bin/env bash
# A cluster of hosts that the network fails: each process in a network namespace of its own, and a switch between them that cuts,
# loses and delays. Whatever was acknowledged must be there once the network is whole again, and all must agree.
set -euo pipefail

usage() {
  cat <<'END'
usage: deploy/test-network.sh

Needs root, ip (iproute2), python3, and the binaries that `cargo build --workspace` makes. Runs three coordinators, two workers
and an operator in namespaces, for about two minutes:
  minority   the leader and a worker are cut off from all others
  one-way    the leader is not reached by anybody, and reaches all
  loss       a fifth of all frames is lost
  delay      each frame takes 200 ms
In each the operator goes on changing things and asking a model; after each, all that was acknowledged must be there. Prints how
much came through, and fails where too little did or anything is missing.
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

hosts=(c1 c2 c3 w1 w2 op)
# The seconds that each fault lasts, and that everything may take to agree afterwards.
fault_s=12
settle_s=60
work=$(mktemp -d)
namespace=roost-$$
processes=()

cleanup() {
  local status=$?
  for process in "${processes[@]}"; do kill -9 "$process" 2>/dev/null || true; done
  for host in "${hosts[@]}"; do ip netns del "$namespace-$host" 2>/dev/null || true; done
  if ((status != 0)); then
    for host in c1 c2 c3 w1 w2; do
      echo "--- $host" >&2
      tail -n 15 "$work/$host.log" >&2 || true
    done
  fi
  rm -rf "$work"
}
trap cleanup EXIT

on() {
  local host=$1
  shift
  ip netns exec "$namespace-$host" "$@"
}

# The operator's command line; its home is the folder with the profile.
roost() {
  (cd "$work" && HOME=$work on op "$target/debug/roost" "$@")
}

address() {
  case $1 in
    c?) echo "10.77.0.1${1#c}" ;;
    w?) echo "10.77.0.2${1#w}" ;;
    op) echo 10.77.0.31 ;;
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
  for host in c1 c2 c3 w1 w2; do
    ip netns exec "$namespace-$host" "$target/debug/roost-node" --config "$work/cluster.toml" --name "$host" \
      >"$work/$host.log" 2>&1 &
    processes+=($!)
  done
}

# until_true SECONDS COMMAND...
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || { echo "it did not come about: $*" >&2; return 1; }
    sleep 0.2
  done
}

# members FIELD-EXPRESSION: evaluates Python over the list of members, `members`.
members() {
  roost cluster members list --timeout 5 --output json 2>/dev/null |
    python3 -c "import json,sys; members = json.load(sys.stdin)['members']; print($1)" 2>/dev/null
}

agree() {
  [[ $(members 'len(members) == 3 and all(m["role"] == "leader" or (m["behind_entries"] == 0 and m["heard_ms"] < 1000) for m in members)') == True ]]
}

leader() {
  members 'next(m["name"] for m in members if m["role"] == "leader")'
}

# Changes and questions until a moment; counts what came through.
operate() {
  local until=$1 said
  changed=0 refused=0 answered=0 failed=0
  while ((SECONDS < until)); do
    number=$((number + 1))
    if said=$(roost label set digits@1 "n-$number" --timeout 4 2>&1); then
      changed=$((changed + 1))
      echo "n-$number" >>"$work/acknowledged"
    else
      refused=$((refused + 1))
      echo "n-$number: $said" >>"$work/refused"
    fi
    if roost infer digits --key "user-$number" --input image="$root/deploy/models/digits/heldout_images.npy" --rows 0..1 \
      --timeout 4 >/dev/null 2>>"$work/failed"; then
      answered=$((answered + 1))
    else
      failed=$((failed + 1))
    fi
  done
}

# Nothing that was acknowledged is missing; what a state may hold is bounded, so it is cleared for the next fault.
check() {
  roost models --output json >"$work/models.json"
  python3 - "$work/models.json" "$work/acknowledged" <<'END'
import json, sys

models = json.load(open(sys.argv[1]))
labels = {label for model in models for label in model["labels"]}
acknowledged = open(sys.argv[2]).read().split()
missing = [label for label in acknowledged if label not in labels]
if missing:
    sys.exit(f"acknowledged and not there: {missing}")
END
  local label
  while read -r label; do roost label remove digits "$label" >/dev/null; done <"$work/acknowledged"
  : >"$work/acknowledged"
}

# fault NAME LEAST-CHANGES ORDER...: each order is one argument.
fault() {
  local name=$1 least=$2
  shift 2
  local each
  for each in "$@"; do order "$each"; done
  operate $((SECONDS + fault_s))
  order heal
  local begun=$SECONDS
  until_true $settle_s agree
  check
  echo "$name: $changed changes acknowledged and $refused not, $answered requests answered and $failed not;" \
    "all agree $((SECONDS - begun)) s after it, nothing acknowledged is missing"
  if ((changed < least)); then
    echo "$name: fewer than $least changes came through" >&2
    tail -n 3 "$work/refused" >&2
    return 1
  fi
}

main() {
  local leads others other cuts=()
  number=0
  : >"$work/acknowledged"
  make_network
  make_cluster
  until_true $settle_s agree
  roost push digits "$root/deploy/models/digits/v1" >/dev/null
  until_true $settle_s roost infer digits --key a --input image="$root/deploy/models/digits/heldout_images.npy" --rows 0..1 \
    --output json >/dev/null

  fault healthy 5 heal

  leads=$(leader)
  for other in c1 c2 c3 w2 op; do
    [[ $other == "$leads" ]] || cuts+=("cut $leads $other" "cut $other $leads" "cut w1 $other" "cut $other w1")
  done
  fault minority 1 "${cuts[@]}"

  leads=$(leader) cuts=()
  for other in "${hosts[@]}"; do
    [[ $other == "$leads" ]] || cuts+=("cut $other $leads")
  done
  fault one-way 1 "${cuts[@]}"

  fault loss 1 "loss 0.2"
  fault delay 0 "delay 200"
}

main

#!/usr/bin/env python3
"""Judges what test-network.sh saw. Prints what was counted; fails with the reason where a promise is broken.

usage: network-check.py converged STATUS MEMBERS SEEN
       network-check.py labels MODELS ACKNOWLEDGED
       network-check.py reached VERSION LOG...
       network-check.py answers NAME SILENCE SHARE FROM HEALED RATES LOG...

  converged   whether `roost cluster status` and `roost cluster members list`, as JSON, tell of a cluster at one; keeps the epoch
              and the term in the file SEEN, and fails for good (exit code 3) if they went back
  labels      whether `roost models`, as JSON, has each label of the file
  reached     whether each client of the logs had its latest answers from both workers at VERSION
  answers     what each client met from the moment FROM (`at` of the logs) on: no failure, no more than SILENCE seconds between
              two answers, and until the moment HEALED no less than SHARE of the answers a second that the file RATES has from
              the first time of asking
"""

import json
import sys
import time

WORKERS = {"w1", "w2"}
# Of the latest answers of a client, so many must be of both workers: each is as likely as the other for a request without a key.
LATEST = 20
# The answers a second of a client that nothing fails for, which asks 50 times.
HEALTHY_MIN = 25


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def entries(path):
    with open(path, encoding="utf-8") as file:
        # The last line may be half written.
        return [json.loads(line) for line in file if line.endswith("\n")]


def fail(reason, code=1):
    print(reason, file=sys.stderr)
    sys.exit(code)


def converged(status_path, members_path, seen_path):
    status, members = read(status_path), read(members_path)["members"]
    if status["leader_error"] is not None:
        fail(f"no leader: {status['leader_error']}")
    never_back(status, seen_path)
    if not status["settled"]:
        fail("the leader has not heard all nodes yet")
    lags = [m["name"] for m in members if m["role"] != "leader" and not (m["behind_entries"] == 0 and m["heard_ms"] < 1000)]
    if len(members) != 3 or lags:
        fail(f"coordinators that lag or are not heard: {lags} of {len(members)}")
    bad = [w["name"] for w in status["workers"] if (w["state"], w["liveness"]) != ("active", "live")]
    if bad or {w["name"] for w in status["workers"]} != WORKERS:
        fail(f"workers that are not active and heard: {bad} of {len(status['workers'])}")
    for line in status["versions"]:
        node = line["node"]
        # An owner serves; who is none has ended to, for as long as it takes to let go.
        if node["owner"] != node["serves"] or node["silent"]:
            fail(f"{line['version']} is {node['stage']} on {node['node']}, owner: {node['owner']}")
    owners = {line["node"]["node"] for line in status["versions"] if line["node"]["owner"]}
    if owners != WORKERS:
        fail(f"workers that host something: {sorted(owners)}")


def never_back(status, seen_path):
    generation, index = status["epoch"].split(".")
    now = [int(generation), int(index), status["term"]]
    try:
        seen = read(seen_path)
    except FileNotFoundError:
        seen = now
    if now[:2] < seen[:2] or now[2] < seen[2]:
        fail(f"epoch and term went back from {seen} to {now}", 3)
    with open(seen_path, "w", encoding="utf-8") as file:
        json.dump(now, file)


def labels(models_path, acknowledged_path):
    there = {label for model in read(models_path) for label in model["labels"]}
    with open(acknowledged_path, encoding="utf-8") as file:
        missing = [label for label in file.read().split() if label not in there]
    if missing:
        fail(f"acknowledged and not there: {missing}")


def reached(version, *logs):
    for path in logs:
        latest = [entry for entry in entries(path) if "version" in entry][-LATEST:]
        at = {(entry["version"], entry["node"]) for entry in latest}
        if at != {(version, worker) for worker in WORKERS}:
            fail(f"{path}: the latest answers are of {sorted(at)}")


def answers(name, silence_s_max, share_min, since, healed, rates_path, *logs):
    silence_s_max, share_min, since, healed = float(silence_s_max), float(share_min), float(since), float(healed)
    broken, said, rates = [], [], {}
    for path in logs:
        client = path.rsplit("/", 1)[-1].removesuffix(".answers")
        came = [entry for entry in entries(path) if entry["at"] >= since]
        answered = [entry for entry in came if "version" in entry]
        failed = [entry for entry in came if "failed" in entry]
        times = [since, *(entry["at"] for entry in answered), time.monotonic()]
        silence_s = max(after - before for before, after in zip(times, times[1:]))
        rates[client] = sum(entry["at"] < healed for entry in answered) / (healed - since)
        retried = sum(entry["attempts"] > 1 for entry in answered)
        fallbacks = sum(entry["fallback"] for entry in answered)
        said.append(f"{client} {len(answered)} answered ({retried} after retries or hedges, {fallbacks} fallbacks), {len(failed)} "
                    f"failed, {rates[client]:.0f} answers/s until healed, {silence_s:.1f} s without one at most")
        if failed:
            broken.append(f"{client}: {len(failed)} requests failed, the first by: {failed[0]['failed']}")
        if any("ended" in entry for entry in came):
            broken.append(f"{client}: the client has ended")
        if silence_s > silence_s_max:
            broken.append(f"{client}: {silence_s:.1f} s without an answer, {silence_s_max} are allowed")
    healthy = healthy_rates(rates_path, rates)
    slow = [client for client, rate in rates.items() if rate < share_min * healthy[client]]
    broken += [f"{client}: {rates[client]:.0f} answers/s, less than {share_min} of {healthy[client]:.0f}" for client in slow]
    broken += inconsistencies(logs)
    print(f"{name}: the clients that stay: {'; '.join(said)}")
    if broken:
        fail("\n".join(f"{name}: {reason}" for reason in broken))


def healthy_rates(path, rates):
    """The rates that were kept first, before anything failed."""
    try:
        return read(path)
    except FileNotFoundError:
        if min(rates.values()) < HEALTHY_MIN:
            fail(f"answers/s before anything failed: {rates}; {HEALTHY_MIN} are expected")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(rates, file)
        return rates


def inconsistencies(logs):
    """Design §1: a client uses no older revision than it has seen, and at one revision all pick the same version."""
    broken, versions = [], {}
    for path in logs:
        newest = 0
        for entry in entries(path):
            if "version" not in entry:
                continue
            if entry["revision"] < newest:
                broken.append(f"{path}: revision {entry['revision']} after {newest}")
            newest = max(newest, entry["revision"])
            if not entry["fallback"]:
                versions.setdefault(entry["revision"], set()).add(entry["version"])
    broken += [f"at revision {revision}: {sorted(of)}" for revision, of in versions.items() if len(of) > 1]
    return broken


def main():
    match sys.argv[1:]:
        case ["converged", status, members, seen]:
            converged(status, members, seen)
        case ["labels", models, acknowledged]:
            labels(models, acknowledged)
        case ["reached", version, *logs] if logs:
            reached(version, *logs)
        case ["answers", name, silence, share, since, healed, rates, *logs] if logs:
            answers(name, silence, share, since, healed, rates, *logs)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()

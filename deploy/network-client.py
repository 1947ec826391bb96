#!/usr/bin/env python3
"""A client that stays: one process of the command line that asks a model over and over, and a log of what came of it.

usage: network-client.py LOG COMMAND...

COMMAND is `roost infer ... --repeat N --output json`. It sends its next request once its last answer is taken, and answers are
taken at a steady pace, so that it asks as an application would and leaves the processor to the cluster. Each line of LOG is a JSON
object with `at`, in seconds of the monotonic clock, and
  an answer    `version`, `node`, `revision`, `ms`, `attempts`, `fallback`
  a failure    `failed`: what the command said
  its end      `ended`: its exit code; nothing follows, and it is never started anew
"""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

ANSWERS_PER_S = 50
# Small, so that few bytes of the answer after the present one are taken ahead of its time.
READ_BYTES = 256


class Log:
    """Lines of the log, written whole, from two threads."""

    def __init__(self, path):
        self.file, self.lock = open(path, "w", encoding="utf-8"), threading.Lock()

    def add(self, **entry):
        with self.lock:
            print(json.dumps({"at": time.monotonic(), **entry}), file=self.file, flush=True)


def lines(connection):
    """The lines that come through a socket, none taken before it is asked for."""
    rest = b""
    while True:
        while b"\n" not in rest:
            read = connection.recv(READ_BYTES)
            if not read:
                return
            rest += read
        line, rest = rest.split(b"\n", 1)
        yield line


def take_answers(connection, log):
    due = time.monotonic()
    for line in lines(connection):
        answer = json.loads(line)
        kept = {name: answer[name] for name in ("version", "node", "revision", "attempts", "fallback")}
        log.add(**kept, ms=answer["elapsed_us"] / 1000)
        # After a pause there is nothing to catch up on.
        now = time.monotonic()
        due = max(due + 1 / ANSWERS_PER_S, now)
        time.sleep(due - now)


def take_failures(stream, log):
    for line in stream:
        # What follows, indented, is advice.
        if line.startswith("roost: "):
            log.add(failed=line.removeprefix("roost: ").rstrip())
        print(line, end="", file=sys.stderr, flush=True)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    log = Log(sys.argv[1])
    # A pipe would let the command run ahead by a hundred answers; a socket holds a few of the smallest size that there is.
    ours, its = socket.socketpair()
    its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    command = subprocess.Popen(sys.argv[2:], stdout=its, stderr=subprocess.PIPE, text=True)
    its.close()
    signal.signal(signal.SIGTERM, lambda *_: command.kill())
    failures = threading.Thread(target=take_failures, args=(command.stderr, log))
    failures.start()
    take_answers(ours, log)
    failures.join()
    log.add(ended=command.wait())


if __name__ == "__main__":
    main()

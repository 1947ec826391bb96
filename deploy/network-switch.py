#!/usr/bin/env python3
"""A switch between network interfaces of this machine that loses, delays and cuts as it is told.

usage: network-switch.py NAME=INTERFACE...

Kernels without netem cannot do that themselves, so frames pass through this process. It reads orders from standard input, one
a line, and answers each with a line on standard output once it is in force:

  cut A B      nothing gets from A to B any more
  loss SHARE   each frame is lost with this probability
  delay MS     each frame takes so long
  heal         as at the start
"""

import array
import fcntl
import heapq

import random
import selectors
import socket
import struct
import sys
import time

SIOCETHTOOL = 0x8946
# Receivers drop what has no checksum, and a switch forwards no frame that is larger than the link takes: no interface may leave
# that work to hardware (linux/ethtool.h: checksums, segmentation of TCP, segmentation in general).
OFFLOADS = {"checksums": 0x17, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}
FRAME_BYTES_MAX = 1 << 16
BROADCAST = b"\xff" * 6

def stop_offloading(interface):
    """Has an interface of the present namespace finish frames in software."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        for name, command in OFFLOADS.items():
            value = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), value.buffer_info()[0])
            try:
                fcntl.ioctl(control, SIOCETHTOOL, request)
            except OSError as error:
                print(f"{interface}: {name} stays on: {error}", file=sys.stderr)

class Switch:
    """Ports by name, what it knows of addresses, and what it was told to do to frames."""

    def __init__(self, interfaces):
        self.ports = {}
        self.names = {}
        for name, interface in interfaces.items():
            port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            port.bind((interface, 0))
            port.setblocking(False)
            self.ports[name] = port
        self.waiting, self.sequence = [], 0
        self.heal()

    def heal(self):
        self.cuts, self.loss, self.delay_s = set(), 0.0, 0.0

    def obey(self, order):
        match order.split():
            case ["cut", a, b] if a in self.ports and b in self.ports:
                self.cuts.add((a, b))
            case ["loss", share]:
                self.loss = float(share)
            case ["delay", ms]:
                self.delay_s = float(ms) / 1000
            case ["heal"]:
                self.heal()
            case _:
                return f"not understood: {order}"
        return f"done: {order}"

    def take(self, name):
        try:
            frame, address = self.ports[name].recvfrom(FRAME_BYTES_MAX)
        except BlockingIOError:
            return
        if address[2] == socket.PACKET_OUTGOING:
            return
        to, source = frame[:6], frame[6:12]
        self.names[source] = name
        known = self.names.get(to)
        others = [known] if known and to != BROADCAST else [other for other in self.ports if other != name]
        for other in others:
            if (name, other) in self.cuts or random.random() < self.loss:
                continue
            self.sequence += 1
            heapq.heappush(self.waiting, (time.monotonic() + self.delay_s, self.sequence, other, frame))

    def give(self):
        """Sends what is due. Returns how long until something is."""
        while self.waiting:
            left = self.waiting[0][0] - time.monotonic()
            if left > 0:
                return left
            _, _, name, frame = heapq.heappop(self.waiting)
            try:
                self.ports[name].send(frame)
            except OSError as error:
                print(f"{name}: a frame of {len(frame)} bytes is lost: {error}", file=sys.stderr)
        return None

def main():
    if sys.argv[1:2] == ["--stop-offloading"]:
        for interface in sys.argv[2:]:
            stop_offloading(interface)
        return
    interfaces = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not interfaces:
        sys.exit(__doc__)
    for interface in interfaces.values():
        stop_offloading(interface)
    switch, selector = Switch(interfaces), selectors.DefaultSelector()
    for name, port in switch.ports.items():
        selector.register(port, selectors.EVENT_READ, name)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select(switch.give()):
            if key.data is not None:
                switch.take(key.data)
                continue
            order = sys.stdin.readline()
            if not order:
                return
            print(switch.obey(order.strip()), flush=True)

if __name__ == "__main__":
    main()

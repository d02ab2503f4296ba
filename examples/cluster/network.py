"""A network laboratory on one machine: a switch, and places with an address of their own, cut and healed at will.

Every place is a network namespace with one cable (a veth pair) to the switch, which is a bridge in a namespace of its
own. Nothing is made in the machine's own network, and no name is registered anywhere: each namespace is held by one
sleeping process, which dies with the process that made it (PR_SET_PDEATHSIG), and with the last process in it the
kernel takes namespace, cable and switch away. So a laboratory that was killed leaves nothing to be cleaned up.

Faults, all of them reversible:

* `unplug`: the cable's end at the switch goes down, as if somebody pulled it out; the place sees its carrier go.
* `lose(a, b)`: what a sends to b gets lost, silently and one way: a has a permanent neighbour entry for b with an
  Ethernet address that nobody has. (A blackhole route would answer the sender with an error at once, which no lost
  packet does. This kernel has neither netem nor u32.)
* `fade`: each packet to or from the place gets lost with a given probability: a classic BPF program of four
  instructions, put by `tc` where packets come in, throws a number for each (SKF_AD_RANDOM, see the kernel's
  Documentation/networking/filter.rst). It needs cls_bpf in the kernel, which `find_fade_lack` tells.
* `cut` is both ways between two; `partition` keeps groups apart; `find` undoes losses, `heal` everything.

Unix sockets are files and are not cut: by them one talks to a node whose network is gone. Needs root and `ip`
(iproute2), `nsenter`, `unshare` and `setpriv` (util-linux).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

#: In namespaces of our own, so that it may be any; host numbers are given in order.
SUBNET = "10.77.0"
PROGRAMS = ("ip", "nsenter", "unshare", "setpriv")
#: An Ethernet address of the local range that no cable has.
NOBODY = "02:00:00:00:00:00"
_DEVICE = "eth0"
#: For the program of `fade`: where the kernel answers with a random number of 32 bits (SKF_AD_OFF + SKF_AD_RANDOM), and
#: what it says of a packet (linux/pkt_cls.h: TC_ACT_SHOT, TC_ACT_UNSPEC).
_RANDOM, _SHOT, _PASS = 2**32 - 0x1000 + 56, 2, 2**32 - 1
_HOLD = "echo ready; exec sleep infinity"


class NetworkError(Exception):
    """The laboratory could not be built or changed; the text has what `ip` said."""


def find_lack() -> str | None:
    """What this machine lacks for a laboratory, in words; None where nothing is missing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"{', '.join(missing)} not found (packages iproute2 and util-linux)" if missing else None


@dataclass(slots=True)
class Place:
    """One namespace and its cable."""

    name: str
    address: str
    _holder: subprocess.Popen[str]
    #: The cable's end at the switch.
    port: str = ""
    is_plugged: bool = True
    #: Places to which nothing arrives from here.
    lost_to: set[str] = field(default_factory=set)
    #: The share of packets that get lost on its cable, each way.
    faded: float = 0.0

    @property
    def pid(self) -> int:
        """Of the process that holds the namespace."""
        return self._holder.pid

    def command(self, *argv: str) -> list[str]:
        """argv, to be run in this place; its process keeps the pid that it is started with, and dies with the thread
        that starts it. The file system is the machine's own, as are all other namespaces (`ip netns exec` would mount
        a /sys without control groups)."""
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def ip(self, *lines: str) -> None:
        """Lines for `ip -batch`, run in this place. Raises NetworkError."""
        self._batch("ip", *lines)

    def tc(self, *lines: str) -> None:
        """The same for `tc -batch`."""
        self._batch("tc", *lines)

    def _batch(self, program: str, *lines: str) -> None:
        done = subprocess.run(
            self.command(program, "-batch", "-"),
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NetworkError(f"{program} in {self.name}: {done.stderr.strip()}\n" + "\n".join(lines))

    def end(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()


class Network:
    """The switch and its places. A context manager; to be made, and kept, by a thread that lives as long as it does
    (see PR_SET_PDEATHSIG in prctl(2): the parent is a thread)."""

    def __init__(self) -> None:
        self._switch: Place | None = None
        self._places: dict[str, Place] = {}
        self._made_by = threading.get_ident()

    def __enter__(self) -> Self:
        lack = find_lack()
        if lack is not None:
            raise NetworkError(lack)
        self._switch = _hold("switch", "")
        # Without spanning tree and multicast snooping a port forwards from the first packet on.
        self._switch.ip(
            "link add switch type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set switch up"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in self._places.values():
            place.end()
        self._places.clear()
        if self._switch is not None:
            self._switch.end()
            self._switch = None

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places.values())

    def add(self, name: str) -> Place:
        """A new place, plugged in, that reaches all others."""
        if self._switch is None:
            raise NetworkError("the network is not entered")
        if name in self._places:
            raise NetworkError(f"there is a place {name} already")
        if threading.get_ident() != self._made_by:
            raise NetworkError("places are made by the thread that made the network, or they would die with another")
        number = len(self._places) + 1
        place = _hold(name, f"{SUBNET}.{number}")
        place.port = f"port{number}"
        try:
            self._switch.ip(
                f"link add {place.port} type veth peer name {_DEVICE} netns {place.pid}",
                f"link set {place.port} master switch up",
            )
            place.ip("link set lo up", f"addr add {place.address}/24 dev {_DEVICE}", f"link set {_DEVICE} up")
        except NetworkError:
            place.end()
            raise
        self._places[name] = place
        return place

    def readdress(self, name: str, address: str) -> None:
        """The place is found under this address from now on, and no more under the old one. Not while anything is cut:
        cuts know addresses."""
        place = self._places[name]
        if any(other.lost_to for other in self._places.values()):
            raise NetworkError("heal the network before an address is changed")
        place.ip(f"addr del {place.address}/24 dev {_DEVICE}", f"addr add {address}/24 dev {_DEVICE}")
        place.address = address

    def unplug(self, name: str) -> None:
        """Pulls the cable: nothing in, nothing out."""
        self._set_plugged(self._places[name], is_plugged=False)

    def plug(self, name: str) -> None:
        self._set_plugged(self._places[name], is_plugged=True)

    def lose(self, sender: str, *receivers: str) -> None:
        """What `sender` sends to these places gets lost from now on; what they send arrives."""
        place = self._places[sender]
        place.lost_to.update(receivers)
        place.ip(*(f"neigh replace {self._places[to].address} lladdr {NOBODY} dev {_DEVICE}" for to in receivers))

    def find(self, sender: str, *receivers: str) -> None:
        """What `sender` sends to these places arrives again (unless a cable is unplugged)."""
        place = self._places[sender]
        found = sorted(place.lost_to.intersection(receivers))
        if found:
            place.ip(*(f"neigh del {self._places[to].address} dev {_DEVICE}" for to in found))
            place.lost_to.difference_update(found)

    def fade(self, name: str, share: float) -> None:
        """Each packet to or from the place gets lost with the probability `share` from now on, each way by itself; 0
        undoes it. Raises NetworkError where the kernel cannot (see find_fade_lack)."""
        place = self._places[name]
        if self._switch is None:
            raise NetworkError("the network is not entered")
        for at, device in ((place, _DEVICE), (self._switch, place.port)):
            if place.faded:
                at.tc(f"qdisc del dev {device} clsact")
            if share:
                at.tc(*_losing(device, share))
        place.faded = share

    def find_fade_lack(self) -> str | None:
        """Why `fade` does not work on this machine, in words; None where it does."""
        if self._switch is None:
            raise NetworkError("the network is not entered")
        if shutil.which("tc") is None:
            return "tc not found (package iproute2)"
        try:
            self._switch.tc(*_losing("lo", 0.5))
        except NetworkError as error:
            return f"this kernel loses no packets at random: {error}"
        self._switch.tc("qdisc del dev lo clsact")
        return None

    def cut(self, one: str, other: str) -> None:
        """Between two places, both ways; all others reach both."""
        self.lose(one, other)
        self.lose(other, one)

    def partition(self, *groups: Iterable[str]) -> None:
        """Places of different groups do not reach each other. A place in no group keeps reaching all."""
        sides = [list(group) for group in groups]
        for side in sides:
            others = [name for other in sides if other is not side for name in other]
            for name in side:
                if others:
                    self.lose(name, *others)

    def heal(self) -> None:
        """Undoes every fault."""
        for place in self._places.values():
            self.find(place.name, *place.lost_to)
            if place.faded:
                self.fade(place.name, 0.0)
            if not place.is_plugged:
                self._set_plugged(place, is_plugged=True)

    def _set_plugged(self, place: Place, *, is_plugged: bool) -> None:
        if self._switch is None:
            raise NetworkError("the network is not entered")
        self._switch.ip(f"link set {place.port} {'up' if is_plugged else 'down'}")
        place.is_plugged = is_plugged


def _losing(device: str, share: float) -> list[str]:
    """Lines for tc: what comes in there gets lost with this probability. 32: A = random; 53: is it at least that?"""
    least = round((1.0 - share) * (2**32 - 1))
    program = f"4,32 0 0 {_RANDOM},53 0 1 {least},6 0 0 {_SHOT},6 0 0 {_PASS}"
    return [f"qdisc add dev {device} clsact", f"filter add dev {device} ingress bpf da bytecode '{program}'"]


def _hold(name: str, address: str) -> Place:
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--", "sh", "-c", _HOLD],
        stdout=subprocess.PIPE,
        text=True,
    )
    place = Place(name, address, holder)
    # The namespace is there once its first process speaks.
    if holder.stdout is None or not holder.stdout.readline():
        with contextlib.suppress(ProcessLookupError):
            place.end()
        raise NetworkError(f"no namespace for {name}: unshare ended with {holder.returncode}")
    return place

"""How the ranks of a job find out who shares a host, and agree on one memory file per host or on none at all."""

import hashlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# All-gather of equally long byte strings over all ranks of the job, in rank order.
Exchange = Callable[[bytes], list[bytes]]

MESSAGE_BYTES = 512
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Meeting:
    """Result of `meet`: the open memory file, and the global ranks that share it, sorted."""

    file: int
    ranks: tuple[int, ...]


def meet(rank: int, exchange: Exchange, region_bytes: Callable[[int], int], why_not: str | None) -> Meeting | str:
    """Agree on a region with the ranks of this host; every rank of the job must call this.

    `region_bytes(n)` is the region's size for n ranks; `why_not` is this rank's reason to refuse, if it has one.
    Returns on all ranks alike either a Meeting or, in one line, the reason why there is none. The caller closes the
    file.
    """
    hosts = _share(exchange, {"host": host_token(), "why": why_not})
    refusal = _first_reason(hosts)
    if refusal:
        return refusal
    if len({entry["host"] for entry in hosts}) == len(hosts):
        return "no two ranks are on one host"
    ranks = tuple(other for other, entry in enumerate(hosts) if entry["host"] == hosts[rank]["host"])
    file, offer = _create(region_bytes(len(ranks))) if rank == ranks[0] else (None, {})
    offers = _share(exchange, offer)
    offer = offers[ranks[0]]
    why = offer["why"]
    if file is None and not why:
        file, why = _open(offer)
    refusal = _first_reason(_share(exchange, {"why": why}))
    if refusal:
        if file is not None:
            os.close(file)
        return refusal
    return Meeting(file, ranks)


def host_token() -> str:
    """Equal for two processes that run under one kernel, in one process namespace, as one user."""
    try:
        where = _BOOT_ID.read_text(encoding="utf-8") + os.readlink("/proc/self/ns/pid")
    except OSError:
        where = f"{socket.gethostname()} {os.getpid()}"
    return hashlib.sha256(f"{where} {os.geteuid()}".encode()).hexdigest()[:32]


def _create(size: int) -> tuple[int | None, dict]:
    nonce = os.urandom(16).hex()
    try:
        file = os.memfd_create(f"mindspeed_llm-{nonce}")
        os.ftruncate(file, size)
    except (OSError, AttributeError) as error:
        return None, {"why": f"no memory file ({error})"}
    return file, {"pid": os.getpid(), "file": file, "nonce": nonce, "why": None}


def _open(offer: dict) -> tuple[int | None, str | None]:
    path = f"/proc/{offer['pid']}/fd/{offer['file']}"
    try:
        # The kernel keeps a memory file's name with it: this cannot be another file with the same number.
        if offer["nonce"] not in os.readlink(path):
            return None, f"{path} is not the memory file of this job"
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), None
    except OSError as error:
        return None, f"cannot open {path}: {error.strerror}"


def _share(exchange: Exchange, entry: dict) -> list[dict]:
    if entry.get("why"):
        entry["why"] = entry["why"].encode("ascii", "replace").decode()[:200]
    return [json.loads(message) for message in exchange(json.dumps(entry).encode().ljust(MESSAGE_BYTES))]


def _first_reason(entries: list[dict]) -> str | None:
    for rank, entry in enumerate(entries):
        if entry["why"]:
            return f"rank {rank}: {entry['why']}"
    return None

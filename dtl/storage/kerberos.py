"""The Kerberos ticket of this user: whether there is one, and how long it lasts.

hdfs-native takes it from the cache that `kinit` wrote. A missing or old ticket is otherwise an
error deep in the work, or of each worker.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtl.config.errors import Fault, FaultsError, UserError
from dtl.storage.hadoop import read_property

LEAST_S = 3600.0
"""Time that a ticket should last: a run takes hours, and asks for it again and again."""


@dataclass(frozen=True)
class Ticket:
    """A ticket that gives others.

    Parameters
    ----------
    principal : str
        Whose.
    ends, renew_until : float
        Seconds since 1970.
    """

    principal: str
    ends: float
    renew_until: float


def is_needed() -> bool:
    """Return whether this Hadoop asks for tickets, and none of a container's tokens is there."""
    secure = read_property("hadoop.security.authentication").lower() == "kerberos"
    return secure and not os.environ.get("HADOOP_TOKEN_FILE_LOCATION")


def check_ticket(least_s: float = LEAST_S) -> Ticket | None:
    """Return this user's ticket, or refuse one that is absent, over, or soon over.

    None where tickets are kept in a place that only Kerberos' own programs read, such as ``KCM:``.

    Raises
    ------
    FaultsError
        With the check ``kerberos``.
    """
    now = time.time()
    name = os.environ.get("KRB5CCNAME", f"FILE:/tmp/krb5cc_{os.getuid()}")
    kind, _, place = name.rpartition(":") if not name.startswith("/") else ("FILE", "", name)
    if kind == "DIR":
        primary = Path(place, "primary")
        place = str(Path(place, primary.read_text().strip() if primary.exists() else "tkt"))
    elif kind not in ("FILE", ""):
        return None
    try:
        tickets = [*read_cache(Path(place).read_bytes())]
    except FileNotFoundError:
        tickets = []
    if not tickets:
        raise _make_fault(f"This Hadoop asks for a Kerberos ticket, and {place} has none.")
    ticket = max(tickets, key=lambda t: t.ends)
    if ticket.ends <= now:
        over = f"{(now - ticket.ends) / 60:,.0f} minutes ago"
        raise _make_fault(f"The ticket of {ticket.principal} in {place} ended {over}.")
    if ticket.ends - now < least_s:
        can_renew = ticket.renew_until > now + least_s
        raise _make_fault(
            f"The ticket of {ticket.principal} lasts {(ticket.ends - now) / 60:.0f} minutes more, "
            "which a run may outlast.",
            "kinit -R" if can_renew else "kinit",
        )
    return ticket


def _make_fault(message: str, command: str = "kinit") -> FaultsError:
    return FaultsError([Fault("kerberos", message, f"Type: {command}")])


def read_cache(data: bytes) -> Iterator[Ticket]:
    """Yield the tickets of a cache that give others, ``krbtgt/…``.

    References
    ----------
    MIT Kerberos, "Credential cache file format", versions 3 and 4.
    """
    if data[:2] not in (b"\x05\x03", b"\x05\x04"):
        raise UserError("The Kerberos cache has a format that is not known. Type: kinit")
    at = 2
    if data[1] == 4:
        at += 2 + struct.unpack_from(">H", data, at)[0]

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f">{form}", data, at)
        at += struct.calcsize(f">{form}")
        return int(value)

    def take_data() -> bytes:
        nonlocal at
        n_bytes = take("I")
        at += n_bytes
        return data[at - n_bytes : at]

    def take_principal() -> str:
        take("I")  # its type
        n_parts = take("I")
        realm, *parts = (take_data().decode(errors="replace") for _ in range(1 + n_parts))
        return f"{'/'.join(parts)}@{realm}"

    def skip_pairs() -> None:
        for _ in range(take("I")):
            take("H")
            take_data()

    try:
        take_principal()
        while at < len(data):
            client, server = take_principal(), take_principal()
            take("H")  # type of the key
            take_data()
            _, _, ends, renew_until = (take("I") for _ in range(4))
            take("B")
            take("I")
            skip_pairs()  # addresses
            skip_pairs()  # authorisation
            take_data(), take_data()
            if server.startswith("krbtgt/"):
                yield Ticket(client, ends, renew_until)
    except struct.error:
        raise UserError("The Kerberos cache is cut off. Type: kinit") from None

"""HTTP to addresses that people name: never into our own network, unless WEBHOOK_PRIVATE says so.

A name is looked up once, every address it has is checked, and the connection goes to one that was: a name that answers otherwise a
moment later leads nowhere else. Redirects are not followed.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.utils.translation import gettext as _

NAT64 = ipaddress.ip_network("64:ff9b::/96")
TIMEOUT = httpx.Timeout(10, connect=5)


class Refused(Exception):
    """The address is not one that Heed sends to."""


def check_url(url: str) -> None:
    """Raise Refused unless the address may be one of the internet's: what can be told without looking its name up."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise Refused(_("is not an address")) from None
    if parts.scheme != "https" and not (settings.WEBHOOK_PRIVATE and parts.scheme == "http"):
        raise Refused(_("must begin with https://"))
    if not host or not url.isascii() or any(ord(c) <= 32 for c in url):
        raise Refused(_("is not an address"))
    if parts.username or parts.password:
        raise Refused(_("must hold no password"))
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return
    _check_address(literal)


def _check_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Raise Refused for what is not public: this machine, private networks, link-local, multicast, and IPv4 inside IPv6."""
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    inner = mapped or address
    is_public = inner.is_global and not inner.is_multicast and address not in NAT64
    if not is_public and not settings.WEBHOOK_PRIVATE:
        raise Refused(_("%(address)s is in a private network") % {"address": address})


def _look_up(host: str, port: int) -> str:
    """An address of the host. Raises Refused if any of them is private, OSError if there is none."""
    found = [str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        _check_address(ipaddress.ip_address(address.partition("%")[0]))
    return found[0]


def post(url: str, *, body: bytes, headers: dict[str, str]) -> int:
    """The status of the answer, whose body is not read. Raises Refused, OSError or httpx.HTTPError if there is none."""
    check_url(url)
    asked = httpx.URL(url)
    address = _look_up(asked.host, asked.port or (443 if asked.scheme == "https" else 80))
    pinned = asked.copy_with(host=address)
    headers = headers | {"Host": asked.netloc.decode("ascii")}
    # trust_env=False: a proxy of ours would look the name up again, and reach what we must not.
    with (
        httpx.Client(timeout=TIMEOUT, trust_env=False) as client,
        client.stream(
            "POST", pinned, content=body, headers=headers, extensions={"sni_hostname": asked.host}
        ) as response,
    ):
        return response.status_code

"""The APIs of a cloud over plain HTTP, as its administrator.

The standard library alone: `up` on a healthy lab asks for one token, and importing an OpenStack client would
take longer than everything else that it does.
"""

import http.client
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from functools import cached_property
from typing import Any

from stacklab.check.result import Unmet

ANSWER_SECONDS = 30.0
# What asks a lab for something never goes through a proxy that the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, after redirects. The case of the headers' names does not matter."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises Unmet when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Unmet(f"the answer is not JSON: {self.body[:200]!r}") from None


@dataclass(frozen=True)
class Token:
    """A token with what Keystone says beside it: for each type of service, the addresses in the catalogue."""

    id: str
    project: str
    catalog: Mapping[str, tuple[str, ...]]


def request(
    url: str,
    *,
    token: str = "",
    document: Any = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = ANSWER_SECONDS,
) -> Answer:
    """GET `url`, or POST a document as JSON. Any status is an answer; raises Unmet when none comes."""
    own = {"Accept": "application/json", **(headers or {})}
    if token:
        own["X-Auth-Token"] = token
    data = None
    if document is not None:
        data = json.dumps(document).encode()
        own["Content-Type"] = "application/json"
    try:
        try:
            response = _OPENER.open(urllib.request.Request(url, data, own), timeout=seconds)
        except urllib.error.HTTPError as error:  # this, too, is an answer
            response = error
        with response:
            return Answer(response.status, response.headers, response.read())
    except (OSError, http.client.HTTPException) as error:
        raise Unmet(f"{url} does not answer: {getattr(error, 'reason', error)}") from None


class Api:
    """The APIs that a cloud's catalogue lists. Safe to use from several threads.

    credentials: the OS_* variables of its administrator. seconds: how long to wait for one answer.
    """

    def __init__(self, credentials: Mapping[str, str], *, seconds: float = ANSWER_SECONDS) -> None:
        self._credentials = credentials
        self._seconds = seconds
        self._lock = threading.Lock()

    @property
    def token(self) -> Token:
        """A token, issued when it is first asked for. Raises Unmet when none is."""
        with self._lock:
            return self._issued

    @cached_property
    def _issued(self) -> Token:
        url = f"{self._credentials['OS_AUTH_URL']}/auth/tokens"
        answer = request(url, document=_login(self._credentials), seconds=self._seconds)
        if answer.status != 201:
            raise Unmet(f"Keystone gives no token, but status {answer.status}", detail=_excerpt(answer))
        document = answer.json()["token"]
        catalog = {
            service["type"]: tuple(dict.fromkeys(each["url"] for each in _public_first(service["endpoints"])))
            for service in document["catalog"]
        }
        return Token(answer.headers["X-Subject-Token"], document["project"]["id"], catalog)

    def addresses(self, kind: str) -> tuple[str, ...]:
        """The addresses of a type of service, the public one first. Raises Unmet when there is none."""
        catalog = self.token.catalog
        if not catalog.get(kind):
            listed = ", ".join(sorted(catalog)) or "nothing"
            raise Unmet(f"the catalogue lists no endpoint of type '{kind}'; it lists {listed}")
        return catalog[kind]

    def get(self, kind: str, path: str = "", *, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON document at `path` below the public address of a type of service.

        Raises Unmet for status 400 and up.
        """
        url = self.addresses(kind)[0].rstrip("/") + path
        answer = request(url, token=self.token.id, headers=headers, seconds=self._seconds)
        if answer.status >= 400:
            raise Unmet(f"GET {url} answers {answer.status}", detail=_excerpt(answer))
        return answer.json()

    def probe(self, url: str) -> None:
        """Ask the API at `url` with a token.

        Some APIs have nothing at the address that they register (Cinder's ends in the project's id); what
        is above it, up to the root, then has to answer. Raises Unmet when nothing answers below status 400.
        """
        said = []
        for above in _upwards(url):
            answer = request(above, token=self.token.id, seconds=self._seconds)
            if answer.status < 400:
                return
            said.append(f"GET {above} answers {answer.status}")
            if answer.status != 404:
                break
        raise Unmet(said[-1], detail="\n".join([*said[:-1], _excerpt(answer)]).strip())


def _login(credentials: Mapping[str, str]) -> dict[str, Any]:
    user = {
        "name": credentials["OS_USERNAME"],
        "domain": {"id": credentials["OS_USER_DOMAIN_ID"]},
        "password": credentials["OS_PASSWORD"],
    }
    project = {"name": credentials["OS_PROJECT_NAME"], "domain": {"id": credentials["OS_PROJECT_DOMAIN_ID"]}}
    identity = {"methods": ["password"], "password": {"user": user}}
    return {"auth": {"identity": identity, "scope": {"project": project}}}


def _public_first(endpoints: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(endpoints, key=lambda endpoint: endpoint["interface"] != "public")


def _upwards(url: str) -> list[str]:
    """The URL itself, then what is above it: http://h/v3/abc, http://h/v3/, http://h/."""
    parts = urllib.parse.urlsplit(url)
    names = [name for name in parts.path.split("/") if name]
    above = [f"/{'/'.join(names[:count])}/".replace("//", "/") for count in range(len(names) - 1, -1, -1)]
    return [url, *(parts._replace(path=path, query="").geturl() for path in above)]


def _excerpt(answer: Answer) -> str:
    return answer.body[:1000].decode(errors="replace").strip()

"""Tokens, scopes, rates and headers."""

import hashlib
from ipaddress import ip_network

import pytest

from recsys.contracts.errors import ConfigError
from serving.config import ServeConfig
from serving.guard import Rates, client_address


def token(name: str, *scopes: str) -> dict:
    return {"name": name, "sha256": hashlib.sha256(f"secret of {name}".encode()).hexdigest(), "scopes": list(scopes)}


@pytest.fixture
def guarded(open_shop):
    return open_shop(
        deadline_ms=10_000, tokens=(token("shop", "read", "write"), token("eye", "read"), token("ops", "admin"))
    )


REQUESTS = {
    "read": ("POST", "/v1/recommendations", {"user_id": "ann"}),
    "metrics": ("GET", "/metrics", None),
    "write": ("POST", "/v1/events", {"events": [{"user_id": "ann", "item_id": "sku-1"}]}),
    "forget": ("DELETE", "/v1/users/ann", None),
    "admin": ("GET", "/v1/admin/rules", None),
}


@pytest.mark.parametrize(
    ("who", "allowed"),
    [
        ("shop", {"read", "metrics", "write", "forget"}),
        ("eye", {"read", "metrics"}),
        ("ops", {"admin"}),
    ],
)
def test_a_token_opens_what_its_scopes_say(guarded, who: str, allowed: set) -> None:
    headers = {"Authorization": f"Bearer secret of {who}"}
    for name, (method, path, body) in REQUESTS.items():
        response = guarded.client.request(method, path, json=body, headers=headers)
        assert response.status_code == (200 if name in allowed else 403), (name, response.text)


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic secret of shop", "Bearer", "secret of shop"])
def test_without_a_known_token_nothing_is_said(guarded, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path, body in REQUESTS.values():
        response = guarded.client.request(method, path, json=body, headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.json()["detail"][0]["loc"] == ["request"]
    assert guarded.client.get("/healthz").status_code == 200


def test_admin_is_off_without_tokens(shop) -> None:
    response = shop.client.put("/v1/admin/rules", json={})
    assert (response.status_code, "off without tokens" in response.text) == (403, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "shop.example"])
def test_strangers_are_not_let_in_without_tokens(host: str) -> None:
    with pytest.raises(ConfigError, match=f"host {host} is open to others"):
        ServeConfig.from_mapping({"host": host}, "recsys serve")
    ServeConfig.from_mapping({"host": host, "tokens": [token("shop", "read")]}, "recsys serve")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert ServeConfig(host=host).tokens == ()


def test_each_client_has_its_own_rate() -> None:
    now = [0.0]
    rates = Rates(2, 3, lambda: now[0])
    assert [rates.take("a") for _ in range(4)] == [True, True, True, False]
    assert rates.take("b")
    now[0] = 0.5  # one more has come in
    assert [rates.take("a"), rates.take("a")] == [True, False]
    now[0] = 100
    assert [rates.take("a") for _ in range(4)] == [True, True, True, False]


def test_clients_that_are_remembered_are_bounded() -> None:
    rates = Rates(1, 1, lambda: 0.0)
    for n in range(20_000):
        rates.take(str(n))
    assert len(rates._buckets) == 10_000


def test_too_many_requests_are_refused_with_a_hint(open_shop) -> None:
    shop = open_shop(requests_per_s=0.001, burst=2)
    found = [shop.client.get("/metrics") for _ in range(3)]
    assert [response.status_code for response in found] == [200, 200, 429]
    assert found[2].headers["retry-after"] == "1"
    assert shop.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.9", ["203.0.113.7"], "203.0.113.7"),
        ("10.0.0.9", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),  # the first is the client's own word
        ("10.0.0.9", ["198.51.100.1", "203.0.113.7 , 10.0.0.8"], "203.0.113.7"),  # two proxies
        ("10.0.0.9", ["10.0.0.7, 10.0.0.8"], "10.0.0.7"),  # the client stands among the proxies
        ("10.0.0.9", ["unknown"], "unknown"),
        ("10.0.0.9", ["203.0.113.7, "], "203.0.113.7"),
        ("10.0.0.9", [""], "10.0.0.9"),
        ("10.0.0.9", [], "10.0.0.9"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),  # no proxy of ours
        ("unknown", ["198.51.100.1"], "unknown"),
    ],
)
def test_a_client_is_who_the_nearest_proxies_say(peer: str, forwarded: list[str], client: str) -> None:
    headers = [(b"host", b"shop"), *((b"x-forwarded-for", each.encode()) for each in forwarded)]
    assert client_address(peer, headers, [ip_network("10.0.0.0/28"), ip_network("::1")]) == client
    assert client_address(peer, headers, []) == peer


@pytest.mark.parametrize(("proxies", "statuses"), [(["127.0.0.1"], [200, 200, 429]), ([], [200, 429, 429])])
def test_a_trusted_proxy_alone_says_who_asks(open_shop, proxies: list[str], statuses: list[int]) -> None:
    shop = open_shop(requests_per_s=0.001, burst=1, proxies=proxies)
    asking = [{"X-Forwarded-For": client} for client in ("203.0.113.7", "203.0.113.8", "203.0.113.7")]
    assert [shop.client.get("/metrics", headers=headers).status_code for headers in asking] == statuses


def test_a_proxy_is_an_address_or_a_network() -> None:
    with pytest.raises(
        ConfigError, match=r"serve.toml: proxies.0 = 'nginx': value is not a valid IPv4 or IPv6 network"
    ):
        ServeConfig.from_mapping({"proxies": ["nginx"]}, "serve.toml")


def test_every_answer_carries_safe_headers(shop) -> None:
    for path in ("/healthz", "/nowhere", "/console", "/v1/admin/rules"):
        headers = shop.client.get(path).headers
        assert headers.get_list("x-content-type-options") == ["nosniff"]
        assert headers.get_list("cache-control") == ["no-store"]
    assert "default-src 'none'" in shop.client.get("/console").headers["content-security-policy"]


def test_a_batch_counts_by_its_requests(open_shop) -> None:
    shop = open_shop(requests_per_s=0.001, burst=6)
    batch = {"requests": [{"user_id": "ann"}] * 3}
    assert [shop.client.post("/v1/recommendations:batch", json=batch).status_code for _ in range(3)] == [200, 200, 429]


def test_a_stranger_may_not_guess_tokens_for_ever(open_shop) -> None:
    shop = open_shop(requests_per_s=0.001, burst=3, tokens=(token("shop", "read"),))
    asked = [shop.client.get("/v1/users/ann/history", headers={"Authorization": f"Bearer {n}"}) for n in range(5)]
    assert [response.status_code for response in asked] == [401, 401, 401, 429, 429]
    allowed = shop.client.get("/v1/users/ann/history", headers={"Authorization": "Bearer secret of shop"})
    assert allowed.status_code == 200  # strangers use up nobody's limit but their own


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("rebind.example", 403),
        ("127.0.0.1.nip.io", 403),
    ],
)
def test_without_tokens_only_names_of_this_machine_are_answered(shop, host: str, status: int) -> None:
    for method, path in (("GET", "/v1/users/ann/history"), ("GET", "/metrics")):
        assert shop.client.request(method, path, headers={"Host": host}).status_code == status
    assert shop.client.get("/healthz", headers={"Host": host}).status_code == 200


def test_with_tokens_any_name_is_answered(guarded) -> None:
    headers = {"Host": "shop.example", "Authorization": "Bearer secret of eye"}
    assert guarded.client.get("/metrics", headers=headers).status_code == 200

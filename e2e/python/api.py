"""The server API through PyPI `cent`, and where that library hides the wire, through plain HTTP: api.py [filter]."""

import asyncio
import base64
import json
import sys
import urllib.error
import urllib.request

import cent
from centrifuge import Client, ClientEventHandler, SubscriptionEventHandler

from plenum import API_KEY, URL, WS, case, run_cases, token, unique, until

server = cent.Client(f"{URL}/api", API_KEY)
_open = []


def api_error(call, *arguments):
    try:
        call(*arguments)
    except cent.CentApiResponseError as error:
        return error.code
    raise AssertionError("there was no error")


def http(path, body=None, method=None, **headers):
    """Status and body of a plain request."""
    request = urllib.request.Request(URL + path, data=body, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


async def subscriber(channel, user=None):
    """A connected and subscribed client of the Python SDK with what it saw."""
    seen, events = [], SubscriptionEventHandler()

    async def on_publication(context):
        seen.append(context.pub)

    events.on_publication = on_publication
    user = user or unique("user")
    client = Client(WS, events=ClientEventHandler(), token=token({"sub": user}), proxy=None)
    client.seen, client.user = seen, user
    _open.append(client)
    await client.connect()
    await client.ready()
    sub = client.new_subscription(channel, events=events)
    await sub.subscribe()
    await sub.ready()
    return client


async def close_all():
    for client in _open:
        await client.disconnect()
    _open.clear()


def history(channel, limit=100, **options):
    return server.history(cent.HistoryRequest(channel=channel, limit=limit, **options))


def publish(channel, data, **options):
    return server.publish(cent.PublishRequest(channel=channel, data=data, **options))


@case("publish gives a position and reaches history and subscribers")
async def _():
    channel = unique("chat:")
    client = await subscriber(channel)
    result = publish(channel, {"n": 1}, tags={"kind": "news"})
    assert result.offset > 0 and result.epoch
    await until("the publication", lambda: client.seen)
    assert (client.seen[0].data, client.seen[0].offset) == ({"n": 1}, result.offset)
    stored = history(channel)
    assert [p.data for p in stored.publications] == [{"n": 1}]
    assert stored.publications[0].tags == {"kind": "news"}
    assert (stored.offset, stored.epoch) == (result.offset, result.epoch)


@case("an idempotency key publishes once")
async def _():
    channel = unique("chat:")
    first = publish(channel, {"n": 1}, idempotency_key="once")
    again = publish(channel, {"n": 2}, idempotency_key="once")
    assert (first.offset, first.epoch) == (again.offset, again.epoch)
    assert [p.data for p in history(channel).publications] == [{"n": 1}]
    assert publish(channel, {"n": 3}, idempotency_key="another").offset > first.offset
    other = unique("chat:")
    publish(other, {"n": 4}, idempotency_key="once")
    assert [p.data for p in history(other).publications] == [{"n": 4}]


@case("skip_history delivers without storing")
async def _():
    channel = unique("chat:")
    client = await subscriber(channel)
    result = publish(channel, {"live": True}, skip_history=True)
    await until("the publication", lambda: client.seen)
    assert history(channel).publications == []
    assert result.offset == 0


@case("b64data carries the bytes of its base64")
async def _():
    channel = unique("chat:")
    client = await subscriber(channel)
    publish(channel, None, b64data=base64.b64encode(b'{"from":"bytes"}').decode())
    await until("the publication", lambda: client.seen)
    assert client.seen[0].data == {"from": "bytes"}


@case("an older version is dropped, another version_epoch starts anew")
async def _():
    channel = unique("chat:")
    for version, epoch in ((5, "a"), (4, "a"), (5, "a"), (6, "a"), (1, "b")):
        status, _ = http(
            "/api/publish",
            json.dumps({"channel": channel, "data": f"{epoch}{version}", "version": version, "version_epoch": epoch})
            .encode(),
            X_API_Key=API_KEY,
            Content_Type="application/json",
        )
        assert status == 200
    assert [p.data for p in history(channel).publications] == ["a5", "a6", "b1"]


@case("broadcast answers for each channel")
async def _():
    channels = [unique("chat:"), unique("deep:"), unique("nowhere:")]
    result = server.broadcast(cent.BroadcastRequest(channels=channels, data={"all": 1}))
    codes = [response.error and response.error.code for response in result.responses]
    assert codes == [None, None, 102]
    for channel in channels[:2]:
        assert [p.data for p in history(channel).publications] == [{"all": 1}]


@case("batch keeps the order of its publications")
async def _():
    channel = unique("deep:")
    requests = [cent.PublishRequest(channel=channel, data=n) for n in range(200)]
    requests.append(cent.HistoryRequest(channel=channel, limit=1, reverse=True))
    result = server.batch(cent.BatchRequest(requests=requests))
    assert result.replies[-1].publications[0].data == 199
    assert [p.data for p in history(channel, 1000).publications] == list(range(200))


@case("batch in parallel answers in the order of its commands")
async def _():
    channels = [unique("deep:") for _ in range(20)]
    requests = [cent.PublishRequest(channel=channel, data=channel) for channel in channels]
    result = server.batch(cent.BatchRequest(requests=requests, parallel=True))
    assert len(result.replies) == 20
    assert [history(channel).publications[0].data for channel in channels] == channels


@case("history: limit 0, since, reverse, and remove")
async def _():
    channel = unique("chat:")
    for n in range(1, 11):
        publish(channel, n)
    assert history(channel, 0).publications == []
    page = history(channel, 4)
    assert [p.data for p in page.publications] == [1, 2, 3, 4]
    since = cent.StreamPosition(offset=page.publications[-1].offset, epoch=page.epoch)
    assert [p.data for p in history(channel, 3, since=since).publications] == [5, 6, 7]
    assert [p.data for p in history(channel, 2, reverse=True).publications] == [10, 9]
    server.history_remove(cent.HistoryRemoveRequest(channel=channel))
    assert history(channel).publications == []
    publish(channel, 11)
    assert [p.data for p in history(channel).publications] == [11]


@case("history where there is none gives 108, unknown channel 102, another epoch 112")
async def _():
    assert api_error(history, unique("live:")) == 108
    assert api_error(history, unique("nowhere:")) == 102
    channel = unique("chat:")
    publish(channel, 1)
    wrong = cent.StreamPosition(offset=1, epoch="elsewhere")
    assert api_error(lambda: history(channel, 1, since=wrong)) == 112


@case("presence, presence_stats, channels and info")
async def _():
    channel = unique("chat:")
    first = await subscriber(channel)
    second = await subscriber(channel, user=first.user)
    await subscriber(channel)
    clients = server.presence(cent.PresenceRequest(channel=channel)).presence
    assert len(clients) == 3 and second.user in {c.user for c in clients.values()}
    stats = server.presence_stats(cent.PresenceStatsRequest(channel=channel))
    assert (stats.num_clients, stats.num_users) == (3, 2)
    listed = server.channels(cent.ChannelsRequest(pattern="chat:*")).channels
    assert listed[channel].num_clients == 3
    nodes = server.info(cent.InfoRequest()).nodes
    assert len(nodes) == 1 and nodes[0].num_clients >= 3 and nodes[0].num_channels >= 1


@case("subscribe, unsubscribe, refresh and disconnect of somebody who is not there do no harm")
async def _():
    server.subscribe(cent.SubscribeRequest(user="nobody", channel=unique("chat:")))
    server.unsubscribe(cent.UnsubscribeRequest(user="nobody", channel=unique("chat:")))
    server.refresh(cent.RefreshRequest(user="nobody"))
    server.disconnect(cent.DisconnectRequest(user="nobody"))


@case("refresh with expired closes the connection for good")
async def _():
    client = await subscriber(unique("chat:"))
    server.refresh(cent.RefreshRequest(user=client.user, expired=True))
    await until("the end of the connection", lambda: client.state.value != "connected")


@case("a missing or wrong key is refused with 401")
async def _():
    body, kind = b'{"channel":"chat:x","data":1}', "application/json"
    assert http("/api/publish", body, Content_Type=kind)[0] == 401
    assert http("/api/publish", body, Content_Type=kind, X_API_Key="wrong")[0] == 401
    assert http("/api/publish", body, Content_Type=kind, X_API_Key=API_KEY)[0] == 200
    assert http("/api/publish", body, Content_Type=kind, Authorization=f"apikey {API_KEY}")[0] == 200


@case("a body that is no JSON, a missing channel, and an unknown method")
async def _():
    headers = {"X_API_Key": API_KEY, "Content_Type": "application/json"}
    assert http("/api/publish", b"{", **headers)[0] == 400
    status, body = http("/api/publish", b'{"data":1}', **headers)
    assert status == 400 or json.loads(body)["error"]["code"] == 107
    assert http("/api/no_such_method", b"{}", **headers)[0] == 404
    assert http("/api/publish", **headers)[0] == 405


@case("liveness, readiness, health, metrics and the OpenAPI document")
async def _():
    for path in ("/livez", "/readyz", "/health"):
        assert http(path)[0] == 200, path
    publish(unique("chat:"), 1)
    status, metrics = http("/metrics")
    assert status == 200 and b"# TYPE" in metrics
    status, document = http("/api/openapi.json")
    openapi = json.loads(document)
    assert status == 200 and openapi["openapi"].startswith("3.1")
    assert "/api/publish" in {("/api" + p if not p.startswith("/api") else p) for p in openapi["paths"]}


if __name__ == "__main__":
    sys.exit(asyncio.run(run_cases(sys.argv[1] if len(sys.argv) > 1 else "", close_all)))

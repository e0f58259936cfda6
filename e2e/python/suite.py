"""The released Python SDK: suite.py json|protobuf [filter]."""

import asyncio
import json
import sys

from centrifuge import Client, ClientEventHandler, ReplyError, StreamPosition, SubscriptionEventHandler

from plenum import NO_PRESENCE, PROXY_WS, api, case, network, publish_many, run_cases, token, unique, until

PROTOBUF = sys.argv[1] == "protobuf"
_open = []


def decode(data):
    return json.loads(data) if PROTOBUF else data


def encode(value):
    return json.dumps(value).encode() if PROTOBUF else value


class Log(list):
    """Events as (name, context), in order."""

    def of(self, name):
        return [context for event, context in self if event == name]

    async def event(self, name, condition=lambda context: True, seconds=15):
        def first():
            return next((c for c in self.of(name) if condition(c)), None)

        return await until(lambda: f"the event {name}; seen: {[e for e, _ in self][-30:]}", first, seconds)


def recorder(base):
    """A handler of the SDK that writes every event into a log."""

    class Recorder(base):
        def __init__(self):
            self.log = Log()

    def write(name):
        async def method(self, context):
            self.log.append((name, context))

        return method

    for name in dir(base):
        if name.startswith("on_"):
            setattr(Recorder, name, write(name[3:]))
    return Recorder


ClientLog = recorder(ClientEventHandler)
SubscriptionLog = recorder(SubscriptionEventHandler)


def new_client(user=None, claims=None, **options):
    user = user or unique("user")
    events = ClientLog()
    options.setdefault("token", token({"sub": user, **(claims or {})}))
    client = Client(
        PROXY_WS, events=events, use_protobuf=PROTOBUF, min_reconnect_delay=0.02, max_reconnect_delay=0.2,
        timeout=10, proxy=None, **options,
    )
    client.log, client.user = events.log, user
    _open.append(client)
    return client


async def connect(**options):
    client = new_client(**options)
    await client.connect()
    client.id = (await client.log.event("connected")).client
    return client


async def subscribe(client, channel, wait="subscribed", **options):
    events = SubscriptionLog()
    sub = client.new_subscription(channel, events=events, min_resubscribe_delay=0.02, **options)
    sub.log = events.log
    await sub.subscribe()
    await sub.log.event(wait)
    return sub


def values(sub):
    return [decode(context.pub.data) for context in sub.log.of("publication")]


def numbers(sub):
    return [value["n"] for value in values(sub)]


async def complete(sub, first, last, seconds=30):
    wanted = list(range(first, last + 1))
    await until(lambda: f"{len(wanted)} publications; {len(values(sub))} came",
                lambda: len(sub.log.of("publication")) >= len(wanted), seconds)
    assert numbers(sub) == wanted, next((i, a, b) for i, (a, b) in enumerate(zip(numbers(sub), wanted)) if a != b)


async def offline(client, during):
    before = len(client.log.of("connected"))
    assert before, "it was never connected"
    await network("refuse")
    assert (await network("cut"))["cut"], "nothing was cut"
    await until("the loss of the connection", lambda: client.state.value != "connected")
    await during
    await network("accept")
    await until("the return", lambda: len(client.log.of("connected")) > before, 30)


async def again(sub, times=2):
    await until(f"{times} times subscribed", lambda: len(sub.log.of("subscribed")) >= times, 30)
    return sub.log.of("subscribed")[times - 1]


async def close_all():
    for client in _open:
        await client.disconnect()
    _open.clear()
    await network("accept")


async def error_code(awaitable):
    try:
        await awaitable
    except ReplyError as error:
        return error.code
    raise AssertionError("there was no error")


@case("connect with a token, publish and receive")
async def _():
    channel = unique("chat:")
    alice, bob = await connect(), await connect()
    a, b = await subscribe(alice, channel), await subscribe(bob, channel)
    await a.publish(encode({"text": "héllo"}))
    for sub in (a, b):
        pub = (await sub.log.event("publication")).pub
        assert decode(pub.data) == {"text": "héllo"}
        assert (pub.info.user, pub.info.client) == (alice.user, alice.id)


@case("a wrong token is refused for good")
async def _():
    client = new_client(token=token({"sub": "x"}, key="another key"))
    await client.connect()
    assert (await client.log.event("disconnected")).code == 3500
    assert not client.log.of("connected")


@case("an expired token makes the SDK ask for a new one; it is refreshed and the connection stays")
async def _():
    asked = []

    async def get_token():
        asked.append(1)
        return token({"sub": "refreshed"}, ttl=2 if len(asked) < 3 else 3600)

    client = new_client(token=token({"sub": "refreshed"}, ttl=-60), get_token=get_token)
    await client.connect()
    await client.log.event("connected")
    await until("two refreshes", lambda: len(asked) == 3)
    sub = await subscribe(client, unique("chat:"))
    await sub.publish(encode({"n": 1}))
    await complete(sub, 1, 1)
    assert len(client.log.of("connected")) == 1


@case("a subscription token opens a channel; without it error 103")
async def _():
    channel = unique("gate:")
    client = await connect()
    sub = await subscribe(client, channel, token=token({"sub": client.user, "channel": channel}))
    await api("publish", channel=channel, data={"n": 1})
    await complete(sub, 1, 1)
    other = await connect()
    refused = await subscribe(other, channel, wait="unsubscribed")
    assert refused.log.of("unsubscribed")[0].code == 103


@case("presence, its figures, join and leave", skip=NO_PRESENCE)
async def _():
    channel = unique("chat:")
    alice = await connect(claims={"info": {"name": "Alice"}})
    sub = await subscribe(alice, channel)
    bob = await connect()
    await subscribe(bob, channel)
    await sub.log.event("join", lambda c: c.info.client == bob.id)
    clients = (await sub.presence()).clients
    assert set(clients) == {alice.id, bob.id}
    assert decode(clients[alice.id].conn_info) == {"name": "Alice"}
    stats = await sub.presence_stats()
    assert (stats.num_clients, stats.num_users) == (2, 2)
    await bob.disconnect()
    await sub.log.event("leave", lambda c: c.info.client == bob.id)


@case("history pages forwards, backwards and from a position")
async def _():
    channel = unique("chat:")
    sub = await subscribe(await connect(), channel)
    await publish_many(channel, 1, 20)

    def shown(result):
        return [decode(pub.data)["n"] for pub in result.publications]

    page = await sub.history(limit=8)
    assert shown(page) == list(range(1, 9))
    position = StreamPosition(offset=page.publications[-1].offset, epoch=page.epoch)
    assert shown(await sub.history(limit=100, since=position)) == list(range(9, 21))
    assert shown(await sub.history(limit=3, reverse=True)) == [20, 19, 18]
    assert shown(await sub.history()) == []


@case("errors: publish 103, RPC 108, history 108, unknown namespace 102")
async def _():
    client = await connect()
    assert await error_code(client.publish(unique("small:"), encode({}))) == 103
    assert await error_code(client.rpc("anything", encode({}))) == 108
    assert await error_code(client.history(unique("live:"), limit=1)) == 108
    refused = await subscribe(client, unique("nowhere:"), wait="unsubscribed")
    assert refused.log.of("unsubscribed")[0].code == 102


@case("recovery of 10,000 publications after a cut")
async def _():
    channel = unique("deep:")
    client = await connect()
    sub = await subscribe(client, channel)
    await publish_many(channel, 1, 2)
    await complete(sub, 1, 2)
    await offline(client, publish_many(channel, 3, 10_000))
    assert (await again(sub)).recovered
    await publish_many(channel, 10_003, 2)
    await complete(sub, 1, 10_004)


@case("recovery when the connection breaks in the middle of a frame")
async def _():
    channel = unique("deep:")
    client = await connect()
    sub = await subscribe(client, channel)
    for turn in range(4):
        before = len(client.log.of("connected"))
        assert (await network(f"cut?after={1500 + 999 * turn}"))["cut"]
        await publish_many(channel, turn * 500 + 1, 500)
        await until("the return", lambda: len(client.log.of("connected")) > before)
    await complete(sub, 1, 2000)


@case("history_size publications missed: recovered; one more: not")
async def _():
    for missed, recovered in ((10, True), (11, False)):
        channel = unique("small:")
        client = await connect()
        sub = await subscribe(client, channel)
        await publish_many(channel, 1, 1)
        await complete(sub, 1, 1)
        await offline(client, publish_many(channel, 2, missed))
        context = await again(sub)
        assert (context.was_recovering, context.recovered) == (True, recovered), missed


@case("server-side subscription from the token, recovered after a cut")
async def _():
    channel = unique("gate:")
    client = await connect(claims={"channels": [channel]})
    await client.log.event("subscribed")
    await publish_many(channel, 1, 2)
    await until("two publications", lambda: len(client.log.of("publication")) == 2)
    await offline(client, publish_many(channel, 3, 50))
    await until("52 publications", lambda: len(client.log.of("publication")) >= 52)
    assert [decode(c.pub.data)["n"] for c in client.log.of("publication")] == list(range(1, 53))
    assert client.log.of("subscribed")[1].recovered


@case("subscribe, unsubscribe and disconnect by API")
async def _():
    channel, mine = unique("gate:"), unique("chat:")
    client = await connect()
    sub = await subscribe(client, mine)
    await api("subscribe", user=client.user, channel=channel)
    await client.log.event("subscribed", lambda c: c.channel == channel)
    await api("unsubscribe", user=client.user, channel=channel)
    await client.log.event("unsubscribed", lambda c: c.channel == channel)
    await api("unsubscribe", user=client.user, channel=mine)
    assert (await sub.log.event("unsubscribed")).code == 2000
    await api("disconnect", user=client.user)
    assert (await client.log.event("disconnected")).code == 3503


if __name__ == "__main__":
    chosen = sys.argv[2] if len(sys.argv) > 2 else ""
    sys.exit(asyncio.run(run_cases(chosen, close_all)))

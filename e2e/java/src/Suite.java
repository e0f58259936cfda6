import static java.util.stream.IntStream.rangeClosed;

import io.github.centrifugal.centrifuge.*;
import java.util.List;
import java.util.Set;
import java.util.concurrent.atomic.AtomicInteger;

/** The released Java SDK (Protobuf): java Suite [filter]. */
final class Suite {
    private Suite() {}

    public static void main(String[] arguments) throws Exception {
        messages();
        tokens();
        recovery();
        serverSide();
        Plenum.runCases(arguments.length > 0 ? arguments[0] : "", () -> {
            Recorded.closeAll();
            Plenum.network("accept");
        });
    }

    /** Takes the network away until {@code during} is done. */
    private static void offline(Recorded who, Plenum.Body during) throws Exception {
        int before = Recorded.of(who.log, "connected").size();
        if (before == 0) {
            throw new AssertionError("it was never connected");
        }
        Plenum.network("refuse");
        Plenum.network("cut");
        Plenum.until("the loss of the connection", () -> who.client.getState() != ClientState.CONNECTED);
        during.run();
        Plenum.network("accept");
        Recorded.await(who.log, "connected", before + 1);
    }

    private static void messages() {
        Plenum.test("connect with a token, publish and receive", () -> {
            String channel = Plenum.unique("chat:");
            Recorded alice = Recorded.connect();
            Recorded.Sub a = alice.subscribe(channel);
            Recorded.Sub b = Recorded.connect().subscribe(channel);
            Recorded.<PublishResult>result(done -> a.subscription.publish(Recorded.json("{\"n\":42}"), done));
            for (Recorded.Sub sub : List.of(a, b)) {
                sub.complete(42, 42);
                PublicationEvent event = (PublicationEvent) Recorded.await(sub.log, "publication", 1).detail();
                Plenum.equal(event.getInfo().getUser(), alice.user);
            }
        });
        Plenum.test("payload bytes pass through untouched", () -> {
            String channel = Plenum.unique("live:");
            Recorded.Sub sub = Recorded.connect().subscribe(channel);
            String payload = "{\"z\":12345678901234567890123,\"a\":1.10}";
            Plenum.api("publish", "{\"channel\":\"" + channel + "\",\"data\":" + payload + "}");
            PublicationEvent event = (PublicationEvent) Recorded.await(sub.log, "publication", 1).detail();
            Plenum.equal(new String(event.getData()), payload);
        });
        Plenum.test("presence, its figures, join and leave", Plenum.NO_PRESENCE, () -> {
            String channel = Plenum.unique("chat:");
            Recorded alice = Recorded.connect(",\"info\":{\"name\":\"Alice\"}");
            Recorded.Sub sub = alice.subscribe(channel);
            Recorded bob = Recorded.connect();
            bob.subscribe(channel);
            Plenum.until("the join", () -> Recorded.of(sub.log, "join").stream().anyMatch(e -> e.detail().equals(bob.id)));
            PresenceResult presence = Recorded.result(sub.subscription::presence);
            Plenum.equal(presence.getClients().keySet(), Set.of(alice.id, bob.id));
            Plenum.equal(new String(presence.getClients().get(alice.id).getConnInfo()), "{\"name\":\"Alice\"}");
            PresenceStatsResult stats = Recorded.result(sub.subscription::presenceStats);
            Plenum.equal(List.of(stats.getNumClients(), stats.getNumUsers()), List.of(2, 2));
            bob.client.disconnect();
            Plenum.until("the leave", () -> Recorded.of(sub.log, "leave").stream().anyMatch(e -> e.detail().equals(bob.id)));
        });
        Plenum.test("history pages forwards, backwards and from a position", () -> {
            String channel = Plenum.unique("chat:");
            Recorded.Sub sub = Recorded.connect().subscribe(channel);
            Plenum.publishMany(channel, 1, 20);
            HistoryResult page = history(sub, new HistoryOptions.Builder().withLimit(8));
            Plenum.equal(shown(page), rangeClosed(1, 8).boxed().toList());
            StreamPosition since = new StreamPosition(page.getPublications().get(7).getOffset(), page.getEpoch());
            Plenum.equal(shown(history(sub, new HistoryOptions.Builder().withLimit(100).withSince(since))),
                rangeClosed(9, 20).boxed().toList());
            Plenum.equal(shown(history(sub, new HistoryOptions.Builder().withLimit(3).withReverse(true))),
                List.of(20, 19, 18));
        });
        Plenum.test("errors: publish 103, RPC 108, history 108, unknown namespace 102", () -> {
            Recorded who = Recorded.connect();
            byte[] data = Recorded.json("{}");
            Plenum.equal(Recorded.<PublishResult>errorCode(done -> who.client.publish(Plenum.unique("small:"), data, done)), 103);
            Plenum.equal(Recorded.<RPCResult>errorCode(done -> who.client.rpc("anything", data, done)), 108);
            Plenum.equal(Recorded.<HistoryResult>errorCode(done -> who.client.history(Plenum.unique("live:"),
                new HistoryOptions.Builder().withLimit(1).build(), done)), 108);
            Recorded.Sub refused = who.new Sub(Plenum.unique("nowhere:"), new SubscriptionOptions());
            Plenum.equal(Recorded.await(refused.log, "unsubscribed", 1).code(), 102);
        });
    }

    private static HistoryResult history(Recorded.Sub sub, HistoryOptions.Builder options) throws Exception {
        return Recorded.result(done -> sub.subscription.history(options.build(), done));
    }

    private static List<Integer> shown(HistoryResult result) {
        return result.getPublications().stream().map(publication -> Recorded.number(publication.getData())).toList();
    }

    private static void tokens() {
        Plenum.test("a wrong token is refused for good", () -> {
            Options options = new Options();
            options.setToken(Plenum.token("\"sub\":\"x\"", 60, "another key"));
            Recorded who = new Recorded("x", options);
            who.client.connect();
            Plenum.equal(who.await("disconnected").code(), 3500);
            Plenum.equal(Recorded.of(who.log, "connected").size(), 0);
        });
        Plenum.test("an expired token makes the SDK ask for a new one; it is refreshed and the connection stays", () -> {
            AtomicInteger asked = new AtomicInteger();
            String claims = "\"sub\":\"refreshed\"";
            String key = Plenum.env("PLENUM_TOKEN_KEY");
            Options options = new Options();
            options.setToken(Plenum.token(claims, -60, key));
            options.setTokenGetter(new ConnectionTokenGetter() {
                @Override
                public void getConnectionToken(ConnectionTokenEvent event, TokenCallback done) {
                    done.Done(null, Plenum.token(claims, asked.incrementAndGet() < 3 ? 2 : 3600, key));
                }
            });
            Recorded who = new Recorded("refreshed", options);
            who.client.connect();
            who.await("connected");
            Plenum.until("two refreshes", () -> asked.get() == 3);
            Recorded.Sub sub = who.subscribe(Plenum.unique("chat:"));
            Recorded.<PublishResult>result(done -> sub.subscription.publish(Recorded.json("{\"n\":1}"), done));
            sub.complete(1, 1);
            Plenum.equal(Recorded.of(who.log, "connected").size(), 1);
        });
        Plenum.test("a subscription token opens a channel; without it error 103", () -> {
            String channel = Plenum.unique("gate:");
            Recorded who = Recorded.connect();
            SubscriptionOptions options = new SubscriptionOptions();
            options.setToken(Plenum.token("\"sub\":\"" + who.user + "\",\"channel\":\"" + channel + "\""));
            Recorded.Sub sub = who.new Sub(channel, options);
            Recorded.await(sub.log, "subscribed", 1);
            Plenum.publishMany(channel, 1, 1);
            sub.complete(1, 1);
            Recorded.Sub refused = Recorded.connect().new Sub(channel, new SubscriptionOptions());
            Plenum.equal(Recorded.await(refused.log, "unsubscribed", 1).code(), 103);
        });
    }

    private static void recovery() {
        Plenum.test("recovery of 10,000 publications after a cut", () -> {
            String channel = Plenum.unique("deep:");
            Recorded who = Recorded.connect();
            Recorded.Sub sub = who.subscribe(channel);
            Plenum.publishMany(channel, 1, 2);
            sub.complete(1, 2);
            offline(who, () -> Plenum.publishMany(channel, 3, 10_000));
            Plenum.equal(((SubscribedEvent) Recorded.await(sub.log, "subscribed", 2).detail()).getRecovered(), true);
            Plenum.publishMany(channel, 10_003, 2);
            sub.complete(1, 10_004);
        });
        Plenum.test("recovery when the connection breaks in the middle of a frame", () -> {
            String channel = Plenum.unique("deep:");
            Recorded who = Recorded.connect();
            Recorded.Sub sub = who.subscribe(channel);
            for (int turn = 0; turn < 4; turn++) {
                int before = Recorded.of(who.log, "connected").size();
                Plenum.network("cut?after=" + (1500 + 999 * turn));
                Plenum.publishMany(channel, turn * 500 + 1, 500);
                Recorded.await(who.log, "connected", before + 1);
            }
            sub.complete(1, 2000);
        });
        Plenum.test("history_size publications missed: recovered; one more: not", () -> {
            for (int missed = 10; missed <= 11; missed++) {
                int count = missed;
                String channel = Plenum.unique("small:");
                Recorded who = Recorded.connect();
                Recorded.Sub sub = who.subscribe(channel);
                Plenum.publishMany(channel, 1, 1);
                sub.complete(1, 1);
                offline(who, () -> Plenum.publishMany(channel, 2, count));
                SubscribedEvent event = (SubscribedEvent) Recorded.await(sub.log, "subscribed", 2).detail();
                Plenum.equal(event.wasRecovering(), true);
                Plenum.equal(event.getRecovered(), missed == 10);
            }
        });
    }

    private static void serverSide() {
        Plenum.test("server-side subscription from the token, recovered after a cut", () -> {
            String channel = Plenum.unique("gate:");
            Recorded who = Recorded.connect(",\"channels\":[\"" + channel + "\"]");
            who.await("subscribed");
            Plenum.publishMany(channel, 1, 2);
            Recorded.await(who.log, "publication", 2);
            offline(who, () -> Plenum.publishMany(channel, 3, 50));
            Recorded.await(who.log, "publication", 52);
            List<Integer> numbers = Recorded.of(who.log, "publication").stream()
                .map(event -> Recorded.number(((ServerPublicationEvent) event.detail()).getData())).toList();
            Plenum.equal(numbers, rangeClosed(1, 52).boxed().toList());
            Plenum.equal(((ServerSubscribedEvent) Recorded.await(who.log, "subscribed", 2).detail()).getRecovered(), true);
        });
        Plenum.test("subscribe, unsubscribe and disconnect by API", () -> {
            String channel = Plenum.unique("gate:");
            String mine = Plenum.unique("chat:");
            Recorded who = Recorded.connect();
            Recorded.Sub sub = who.subscribe(mine);
            String target = "{\"user\":\"" + who.user + "\",\"channel\":\"%s\"}";
            Plenum.api("subscribe", String.format(target, channel));
            who.await("subscribed");
            Plenum.api("unsubscribe", String.format(target, channel));
            who.await("unsubscribed");
            Plenum.api("unsubscribe", String.format(target, mine));
            Plenum.equal(Recorded.await(sub.log, "unsubscribed", 1).code(), 2000);
            Plenum.api("disconnect", "{\"user\":\"" + who.user + "\"}");
            Plenum.equal(who.await("disconnected").code(), 3503);
        });
    }
}

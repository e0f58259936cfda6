import io.github.centrifugal.centrifuge.*;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

/** A client of the released Java SDK with everything it reports written down. */
final class Recorded extends EventListener {
    /** What happened, in order: its name, a code where there is one, and the SDK's own object. */
    record Event(String name, int code, Object detail) {}

    private static final List<Recorded> OPEN = Collections.synchronizedList(new ArrayList<>());

    final List<Event> log = Collections.synchronizedList(new ArrayList<>());
    final String user;
    final Client client;
    String id;

    Recorded(String user, Options options) {
        this.user = user;
        options.setMinReconnectDelay(20);
        options.setMaxReconnectDelay(200);
        options.setTimeout(10_000);
        client = new Client(Plenum.PROXY_WS, options, this);
        OPEN.add(this);
    }

    /** A connected client whose token has these further claims, each with a comma before it. */
    static Recorded connect(String claims) throws Exception {
        String user = Plenum.unique("user");
        Options options = new Options();
        options.setToken(Plenum.token("\"sub\":\"" + user + "\"" + claims));
        Recorded recorded = new Recorded(user, options);
        recorded.client.connect();
        recorded.id = ((ConnectedEvent) recorded.await("connected").detail()).getClient();
        return recorded;
    }

    static Recorded connect() throws Exception {
        return connect("");
    }

    static void closeAll() throws Exception {
        for (Recorded each : OPEN) {
            each.client.close(1000);
        }
        OPEN.clear();
    }

    static List<Event> of(List<Event> log, String name) {
        synchronized (log) {
            return log.stream().filter(event -> event.name().equals(name)).toList();
        }
    }

    Event await(String name) throws Exception {
        return await(log, name, 1);
    }

    /** The event of that name for the n-th time. */
    static Event await(List<Event> log, String name, int times) throws Exception {
        Plenum.until(() -> name + " number " + times + "; seen: " + names(log), 30, () -> of(log, name).size() >= times);
        return of(log, name).get(times - 1);
    }

    private static List<String> names(List<Event> log) {
        synchronized (log) {
            return log.stream().map(event -> event.name() + ":" + event.code()).skip(Math.max(0, log.size() - 30)).toList();
        }
    }

    /** A subscription of this client with its own log. */
    final class Sub extends SubscriptionEventListener {
        final List<Event> log = Collections.synchronizedList(new ArrayList<>());
        final Subscription subscription;

        Sub(String channel, SubscriptionOptions options) throws Exception {
            options.setMinResubscribeDelay(20);
            subscription = client.newSubscription(channel, options, this);
            subscription.subscribe();
        }

        List<Integer> numbers() {
            return of(log, "publication").stream().map(e -> number(((PublicationEvent) e.detail()).getData())).toList();
        }

        /** Waits for the publications first to last and compares once. */
        void complete(int first, int last) throws Exception {
            int count = last - first + 1;
            Plenum.until(() -> count + " publications; " + of(log, "publication").size() + " came", 30,
                () -> of(log, "publication").size() >= count);
            Plenum.equal(numbers(), java.util.stream.IntStream.rangeClosed(first, last).boxed().toList());
        }

        @Override
        public void onPublication(Subscription sub, PublicationEvent event) {
            log.add(new Event("publication", 0, event));
        }

        @Override
        public void onJoin(Subscription sub, JoinEvent event) {
            log.add(new Event("join", 0, event.getInfo().getClient()));
        }

        @Override
        public void onLeave(Subscription sub, LeaveEvent event) {
            log.add(new Event("leave", 0, event.getInfo().getClient()));
        }

        @Override
        public void onSubscribed(Subscription sub, SubscribedEvent event) {
            log.add(new Event("subscribed", 0, event));
        }

        @Override
        public void onUnsubscribed(Subscription sub, UnsubscribedEvent event) {
            log.add(new Event("unsubscribed", event.getCode(), event));
        }
    }

    Sub subscribe(String channel) throws Exception {
        Sub sub = new Sub(channel, new SubscriptionOptions());
        await(sub.log, "subscribed", 1);
        return sub;
    }

    static byte[] json(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    /** The number in a payload {"n": number}. */
    static int number(byte[] data) {
        return Integer.parseInt(new String(data, StandardCharsets.UTF_8).replaceAll("[^0-9]", ""));
    }

    /** The result of a call of the SDK that answers by callback. */
    static <T> T result(java.util.function.Consumer<ResultCallback<T>> call) throws Exception {
        CompletableFuture<T> future = new CompletableFuture<>();
        call.accept((error, value) -> {
            if (error != null) {
                future.completeExceptionally(error);
            } else {
                future.complete(value);
            }
        });
        return future.get(15, TimeUnit.SECONDS);
    }

    /** The code of the error that a call of the SDK answers with. */
    static <T> int errorCode(java.util.function.Consumer<ResultCallback<T>> call) throws Exception {
        try {
            result(call);
        } catch (ExecutionException error) {
            if (error.getCause() instanceof ReplyError reply) {
                return reply.getCode();
            }
            throw error;
        }
        throw new AssertionError("there was no error");
    }

    @Override
    public void onConnecting(Client client, ConnectingEvent event) {
        log.add(new Event("connecting", event.getCode(), event));
    }

    @Override
    public void onConnected(Client client, ConnectedEvent event) {
        log.add(new Event("connected", 0, event));
    }

    @Override
    public void onDisconnected(Client client, DisconnectedEvent event) {
        log.add(new Event("disconnected", event.getCode(), event));
    }

    @Override
    public void onError(Client client, ErrorEvent event) {
        log.add(new Event("error", 0, event));
    }

    @Override
    public void onSubscribed(Client client, ServerSubscribedEvent event) {
        log.add(new Event("subscribed", 0, event));
    }

    @Override
    public void onUnsubscribed(Client client, ServerUnsubscribedEvent event) {
        log.add(new Event("unsubscribed", 0, event));
    }

    @Override
    public void onPublication(Client client, ServerPublicationEvent event) {
        log.add(new Event("publication", 0, event));
    }
}

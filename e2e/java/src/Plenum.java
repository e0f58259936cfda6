import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import java.util.function.Supplier;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/** The server under test as the Java suite sees it, and named cases that are counted, each with a deadline. */
final class Plenum {
    static final String PROXY_WS = env("PLENUM_PROXY_WS");
    private static final int CASE_SECONDS = 90;
    private static final HttpClient HTTP = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private static final List<Case> CASES = new ArrayList<>();

    interface Body {
        void run() throws Exception;
    }

    private record Case(String name, String skip, Body body) {}

    private Plenum() {}

    static String env(String name) {
        String value = System.getenv(name);
        if (value == null) {
            throw new IllegalStateException(name + " is not set: start this through e2e/serve");
        }
        return value;
    }

    /** Why a case that needs to know of clients at another replica cannot run, or null. */
    static final String NO_PRESENCE =
        env("PLENUM_PRESENCE").equals("own") ? "presence is each replica's own without Redis" : null;

    static void test(String name, Body body) {
        test(name, null, body);
    }

    /** {@code skip} says why the case cannot run here; null lets it. */
    static void test(String name, String skip, Body body) {
        CASES.add(new Case(name, skip, body));
    }

    /** Runs the cases whose name contains {@code only}, prints a line each and the sum, and ends the process. */
    static void runCases(String only, Body afterEach) throws Exception {
        int passed = 0;
        int failed = 0;
        int skipped = 0;
        for (Case each : CASES) {
            if (!each.name().contains(only)) {
                continue;
            }
            if (each.skip() != null) {
                skipped++;
                System.out.println("skip  " + each.name() + ": " + each.skip());
                continue;
            }
            long begin = System.nanoTime();
            Throwable problem = null;
            try {
                CompletableFuture.runAsync(() -> {
                    try {
                        each.body().run();
                    } catch (Exception error) {
                        throw new java.util.concurrent.CompletionException(error);
                    }
                }).get(CASE_SECONDS, TimeUnit.SECONDS);
            } catch (Exception error) {
                problem = error instanceof java.util.concurrent.ExecutionException ? error.getCause() : error;
            }
            afterEach.run();
            String took = String.format("%.1f s", (System.nanoTime() - begin) / 1e9);
            if (problem == null) {
                passed++;
                System.out.println("ok    " + each.name() + " (" + took + ")");
            } else {
                failed++;
                System.out.println("FAIL  " + each.name() + " (" + took + ")");
                problem.printStackTrace(System.out);
            }
        }
        System.out.println(passed + " passed, " + failed + " failed, " + skipped + " skipped");
        System.exit(failed == 0 ? 0 : 1);
    }

    /** Waits until {@code condition} is true; says {@code what} was awaited when it is not in time. */
    static void until(Supplier<String> what, int seconds, BooleanSupplier condition) throws InterruptedException {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        while (!condition.getAsBoolean()) {
            if (System.nanoTime() > end) {
                throw new AssertionError("waited " + seconds + " s for " + what.get());
            }
            Thread.sleep(5);
        }
    }

    static void until(String what, BooleanSupplier condition) throws InterruptedException {
        until(() -> what, 15, condition);
    }

    static void equal(Object actual, Object wanted) {
        if (!java.util.Objects.equals(actual, wanted)) {
            throw new AssertionError("got " + actual + ", wanted " + wanted);
        }
    }

    static String unique(String prefix) {
        return prefix + UUID.randomUUID().toString().substring(0, 12);
    }

    /** An HS256 token; {@code claims} is the inside of a JSON object. */
    static String token(String claims, int ttlSeconds, String key) {
        try {
            long exp = System.currentTimeMillis() / 1000 + ttlSeconds;
            String signed = part("{\"alg\":\"HS256\",\"typ\":\"JWT\"}".getBytes(StandardCharsets.UTF_8)) + "."
                + part(("{" + claims + ",\"exp\":" + exp + "}").getBytes(StandardCharsets.UTF_8));
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(key.getBytes(StandardCharsets.UTF_8), "HmacSHA256"));
            return signed + "." + part(mac.doFinal(signed.getBytes(StandardCharsets.UTF_8)));
        } catch (java.security.GeneralSecurityException error) {
            throw new IllegalStateException(error);
        }
    }

    static String token(String claims) {
        return token(claims, 3600, env("PLENUM_TOKEN_KEY"));
    }

    private static String part(byte[] bytes) {
        return Base64.getUrlEncoder().withoutPadding().encodeToString(bytes);
    }

    /** Calls the server API with JSON text and gives its reply as text. */
    static String api(String method, String body) throws Exception {
        String reply = post(env("PLENUM_URL") + "/api/" + method, body);
        if (reply.contains("\"error\"")) {
            throw new AssertionError("api " + method + ": " + reply);
        }
        return reply;
    }

    /** Publishes {"n": first} and the following ones, in order. */
    static void publishMany(String channel, int first, int count) throws Exception {
        for (int at = first; at < first + count; at += 500) {
            StringBuilder commands = new StringBuilder("{\"commands\":[");
            for (int n = at; n < Math.min(at + 500, first + count); n++) {
                commands.append(n == at ? "" : ",").append("{\"publish\":{\"channel\":\"").append(channel)
                    .append("\",\"data\":{\"n\":").append(n).append("}}}");
            }
            api("batch", commands.append("]}").toString());
        }
    }

    /** A command to the proxy of e2e/serve. */
    static String network(String command) throws Exception {
        return post(env("PLENUM_CONTROL") + "/" + command, "");
    }

    private static String post(String url, String body) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url))
            .timeout(Duration.ofSeconds(60))
            .header("content-type", "application/json")
            .header("x-api-key", env("PLENUM_API_KEY"))
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        HttpResponse<String> response = HTTP.send(request, HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new AssertionError(url + ": HTTP " + response.statusCode() + " " + response.body());
        }
        return response.body();
    }
}

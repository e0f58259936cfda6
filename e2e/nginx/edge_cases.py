#!/usr/bin/env python3
"""What nginx with the shipped template lets through, adds and takes away, seen by upstreams that record; TLS, files, bounds."""

import gzip
import json
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "deploy/stack"), str(ROOT / "e2e"), str(ROOT / "e2e/nginx")]
import cases  # noqa: E402
from cluster import free_port  # noqa: E402
from nginx import Nginx, rendered  # noqa: E402
from peers import SECONDS, Names, Recorder, Refused, WebSocket, ask, trusting, until  # noqa: E402

UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
CLIENT, PROXY = "127.0.0.3", "127.0.0.2"  # two addresses of this machine; the second is a proxy to be believed


class Base(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="plenum-nginx-")
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def recorder(self, *arguments, **options):
        recorder = Recorder(*arguments, **options)
        self.addCleanup(recorder.stop)
        return recorder

    def nginx(self, upstream=None, status_port=None, **settings):
        if upstream:
            settings.setdefault("WEBSOCKET_SERVERS", f"127.0.0.1:{upstream.port}")
        nginx = Nginx(self.folder / "nginx", settings, status_port=status_port)
        self.assertIsNone(nginx.check())
        nginx.start()
        self.addCleanup(nginx.stop)
        nginx.wait_ready()
        return nginx


class Render(unittest.TestCase):
    def test_every_name_is_used_and_explained(self):
        template = (ROOT / "nginx/nginx.conf.template").read_text()
        named = set(re.findall(r"@([A-Z_]+)(?:\[\])?@", template)) | set(re.findall(r"^#(?:if|unless) (\w+)", template, re.M))
        listed = re.findall(r"^([A-Z_]+)=", (ROOT / "nginx/defaults.env").read_text(), re.M)
        self.assertEqual(named, set(listed))
        self.assertEqual(len(listed), len(set(listed)))

    def test_blocks_are_closed_by_their_own_names(self):
        open_blocks = []
        for line in (ROOT / "nginx/nginx.conf.template").read_text().splitlines():
            word, _, name = line.partition(" ")
            if word in ("#if", "#unless"):
                open_blocks.append(name)
            elif word == "#end":
                self.assertEqual(open_blocks.pop(), name)
        self.assertEqual(open_blocks, [])

    def test_a_value_cannot_break_out_of_its_place(self):
        for name, value in [("USER", "a; b"), ("WEB_ROOT", "/x; return 200"), ("RUN", "/x{"), ("HTTP", "80 $x"),
                            ("CSP", 'a" always'), ("NOT_THERE", "1"), ("STATUS", "8081\nevil"), ("ACCESS_LOG", "/x # y"),
                            ("RUN", "a'b")]:
            with self.subTest(name=name, value=value):
                with self.assertRaises(ValueError):
                    rendered({name: value})

    def test_lists_become_lines_and_blocks_go(self):
        text = rendered({"WEBSOCKET_SERVERS": "a:1 b:2", "TRUSTED_PROXIES": ""})
        self.assertRegex(text, r"server a:1 .*\n +server b:2 ")
        for word in ("@", "#if", "#end", "set_real_ip_from", "ssl_certificate", "plenum_api", "resolver"):
            self.assertNotIn(word, "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("# ")))


class Edge(Base):
    def test_only_an_upgrade_to_websocket_goes_on(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream)
        for given, upgrade, connection in [("websocket", "websocket", "upgrade"), ("WebSocket", "websocket", "upgrade"),
                                           ("h2c", None, None), ("websocket, h2c", None, None), (None, None, None)]:
            with self.subTest(upgrade=given):
                headers = {"Upgrade": given, "Connection": "Upgrade", "HTTP2-Settings": "AAMAAABkAAQ"} if given else {}
                ask(nginx.port, "/connection/websocket", headers=headers)
                self.assertEqual(upstream.headers().get("Upgrade"), upgrade)
                self.assertIn(upstream.headers().get("Connection"), (connection, connection or "keep-alive"))

    def test_what_a_client_claims_of_itself_ends_here(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream, USER_HEADER="X-User-Id")
        claims = {
            "X-Forwarded-For": "9.9.9.9", "X-Real-IP": "9.9.9.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil",
            "Forwarded": "for=9.9.9.9", "X-User-Id": "admin", "X-Request-Id": "mine", "Proxy": "evil",
        }
        ask(nginx.port, "/connection/sse", headers=claims, source=CLIENT)
        got = upstream.headers()
        self.assertEqual(got.get_all("X-Forwarded-For"), [CLIENT])
        self.assertEqual(got.get_all("X-Real-IP"), [CLIENT])
        self.assertEqual(got.get_all("X-Forwarded-Proto"), ["http"])
        self.assertEqual(got.get_all("X-Forwarded-Host"), ["plenum.test"])
        self.assertEqual(got.get_all("Host"), ["plenum.test"])
        for name in ("Forwarded", "X-User-Id", "Proxy"):
            self.assertIsNone(got.get(name), name)
        self.assertNotEqual(got.get("X-Request-Id"), "mine")

    def test_only_trusted_proxies_name_the_client(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream, TRUSTED_PROXIES=f"{PROXY}/32 10.0.0.0/8")
        chain = {"X-Forwarded-For": "6.6.6.6, 1.2.3.4, 10.0.0.7", "X-Forwarded-Proto": "https"}
        for source, address, scheme in [(CLIENT, CLIENT, "http"), (PROXY, "1.2.3.4", "https")]:
            with self.subTest(source=source):
                answer = ask(nginx.port, "/connection/sse", headers=chain, source=source)
                self.assertEqual(upstream.headers().get("X-Real-IP"), address)
                self.assertEqual(upstream.headers().get("X-Forwarded-Proto"), scheme)
                self.assertEqual(answer.one("Strict-Transport-Security") is not None, scheme == "https")
        # A line is written after the answer.
        lines = until("both are logged", lambda: (lines := nginx.access_log.read_text().splitlines())[1:] and lines)
        entries = [json.loads(line) for line in lines]
        self.assertEqual([(each["client"], each["peer"]) for each in entries], [(CLIENT, CLIENT), ("1.2.3.4", PROXY)])

    def test_the_proxy_protocol_names_the_client_from_trusted_proxies_only(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream, PROXY_PROTOCOL="on", TRUSTED_PROXIES=f"{PROXY}/32")
        preface = b"PROXY TCP4 1.2.3.4 127.0.0.1 5555 80\r\n"
        for source, address in [(PROXY, "1.2.3.4"), (CLIENT, CLIENT)]:
            with self.subTest(source=source):
                ask(nginx.port, "/connection/sse", headers={"X-Forwarded-For": "9.9.9.9"}, source=source, preface=preface)
                self.assertEqual(upstream.headers().get("X-Real-IP"), address)

    def test_heads_and_bodies_are_bounded(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream, API_SERVERS=f"127.0.0.1:{upstream.port}")
        port = nginx.port
        self.assertEqual(ask(port, "/connection/sse", headers={"X-Large": "x" * 7000}).status, 200)
        self.assertEqual(ask(port, "/connection/sse", headers={"X-Large": "x" * 9000}).status, 400)
        many = {f"X-{number}": "x" * 4000 for number in range(9)}
        self.assertEqual(ask(port, "/connection/sse", headers=many).status, 400)
        self.assertEqual(ask(port, "/connection/sse?" + "x" * 9000).status, 414)
        self.assertEqual(ask(port, "/api/publish", "POST", body=b"x" * 4_000_000).status, 200)
        self.assertEqual(len(upstream.requests[-1][2]), 4_000_000)
        seen = len(upstream.requests)
        self.assertEqual(ask(port, "/api/publish", "POST", body=b"x" * 5_000_000).status, 413)
        self.assertEqual(ask(port, "/emulation", "POST", body=b"x" * 70_000).status, 413)
        self.assertEqual(ask(port, "/connection/websocket", "POST", body=b"x" * 2_000).status, 413)
        self.assertEqual(len(upstream.requests), seen)

    def test_without_the_api_there_is_no_way_to_it(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream)
        for target in ("/api", "/api/", "/api/publish", "/"):
            self.assertEqual(ask(nginx.port, target, "POST", body=b"{}").status, 404)
        self.assertEqual(upstream.requests, [])

    def test_the_upstream_sees_the_path_that_was_matched(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream, API_SERVERS=f"127.0.0.1:{upstream.port}")
        for target, path in [("/connection/websocket?a=b&c=%20d", "/connection/websocket?a=b&c=%20d"),
                             ("/connection/x/../websocket", "/connection/websocket"),
                             ("/api//x/%2e./publish", "/api/publish"), ("/api/a%0d%0ab", "/api/a%0D%0Ab")]:
            with self.subTest(target=target):
                ask(nginx.port, target)
                self.assertEqual(upstream.requests[-1][0], path)

    def test_streams_are_not_buffered(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream)
        with socket.create_connection(("127.0.0.1", nginx.port), SECONDS) as connection:
            connection.sendall(b"GET /connection/sse?slowly HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            got = b""
            for word, release in [(b"first", upstream.more), (b"second", upstream.release), (b"last", threading.Event())]:
                while word not in got:
                    got += connection.recv(4096)
                release.set()

    def test_retries_are_bounded_and_a_publish_is_never_sent_twice(self):
        upstreams = [self.recorder(str(number), status=503) for number in range(5)]
        servers = " ".join(f"127.0.0.1:{upstream.port}" for upstream in upstreams)
        nginx = self.nginx(WEBSOCKET_SERVERS=servers, API_SERVERS=servers)

        def seen():
            return sum(len(upstream.requests) for upstream in upstreams)

        answer = ask(nginx.port, "/connection/websocket", headers=UPGRADE)
        self.assertEqual((answer.status, answer.one("Retry-After"), seen()), (503, "7", 3))
        self.assertEqual(ask(nginx.port, "/api/publish", "POST", body=b"{}").status, 503)
        self.assertEqual(seen(), 4)

    def test_bounds_per_address_answer_429(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream, HANDSHAKES_PER_ADDRESS=1, HANDSHAKE_BURST=2)
        begin, got = time.monotonic(), []
        while not got or got[-1].status != 429:
            got.append(ask(nginx.port, "/connection/websocket", headers=UPGRADE))
            # The burst, the one beyond it that comes in time, and one more for every second that this took.
            self.assertLessEqual(len(got), 5 + (time.monotonic() - begin))
        self.assertEqual([answer.status for answer in got[:3]], [200, 200, 200])
        self.assertEqual(got[-1].one("Retry-After"), "1")
        self.assertIsNone(got[0].one("Retry-After"))
        self.assertEqual(ask(nginx.port, "/connection/websocket", source=CLIENT).status, 200, "another address")

    def test_connections_per_address_are_bounded(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream, CONNECTIONS_PER_ADDRESS=2)
        held = []
        for _ in range(2):
            connection = socket.create_connection(("127.0.0.1", nginx.port), SECONDS)
            self.addCleanup(connection.close)
            connection.sendall(b"GET /connection/sse?slowly HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertIn(b"200", connection.recv(4096))
            held.append(connection)
        self.assertEqual(ask(nginx.port, "/connection/websocket", headers=UPGRADE).status, 429)
        upstream.more.set()
        upstream.release.set()

    def test_a_full_replica_gets_no_more_connections(self):
        upstream = self.recorder()
        nginx = self.nginx(upstream, CONNECTIONS_PER_REPLICA=1)
        with socket.create_connection(("127.0.0.1", nginx.port), SECONDS) as connection:
            connection.sendall(b"GET /connection/sse?slowly HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertIn(b"200", connection.recv(4096))
            self.assertEqual(ask(nginx.port, "/connection/websocket", headers=UPGRADE).status, 502)
            upstream.more.set()
            upstream.release.set()

    def test_replicas_come_and_go_by_name_without_a_reload(self):
        port = free_port()
        upstreams = [self.recorder(address, port=port, address=address) for address in ("127.0.0.11", "127.0.0.12")]
        names = Names()
        self.addCleanup(names.stop)
        names.addresses = ["127.0.0.11"]
        nginx = self.nginx(
            WEBSOCKET_SERVERS=f"replicas.plenum.test:{port}", RESOLVE="resolve", RESOLVER=f"127.0.0.1:{names.port}",
            RESOLVER_VALID="1s",
        )

        def answered(count=6):
            got = {ask(nginx.port, "/connection/sse").body.decode() for _ in range(count)}
            return got

        until("the name is known", lambda: answered(1) == {"127.0.0.11"})
        names.addresses = ["127.0.0.11", "127.0.0.12"]
        until("the new one gets connections", lambda: answered() == {"127.0.0.11", "127.0.0.12"})
        names.addresses = ["127.0.0.12"]
        until("the old one gets none", lambda: answered() == {"127.0.0.12"})
        upstreams[0].requests.clear()
        answered(10)
        self.assertEqual(upstreams[0].requests, [])

    def test_status_is_for_the_inside_only(self):
        upstream = self.recorder()
        port = free_port()
        self.nginx(upstream, port, STATUS=f"0.0.0.0:{port}", STATUS_FROM=f"{PROXY}/32")
        self.assertIn(b"Active connections", ask(port, "/status").body)
        self.assertEqual(ask(port, "/status", source=PROXY).status, 200)
        self.assertEqual(ask(port, "/status", source=CLIENT).status, 403)
        self.assertEqual(ask(port, "/healthz", source=CLIENT).status, 200)
        self.assertEqual(ask(port, "/connection/websocket").status, 404)


class Files(Base):
    def setUp(self):
        super().setUp()
        self.web = self.folder / "web"
        (self.web / "assets").mkdir(parents=True)
        self.script = b"console.log('plenum');" * 500
        (self.web / "index.html").write_text("<!doctype html><title>Plenum</title>" + "<p>text</p>" * 200)
        (self.web / "assets/app-1a2b.js").write_bytes(self.script)
        (self.web / "assets/ready-1a2b.css").write_bytes(b"a{}" * 1000)
        (self.web / "assets/ready-1a2b.css.gz").write_bytes(gzip.compress(b"b{}" * 1000))
        (self.web / ".secret").write_text("secret")
        self.upstream = self.recorder("x" * 5000)
        self.running = self.nginx(
            self.upstream, WEB_ROOT=self.web, WEB_ROUTES="/s/ /rooms/", API_SERVERS=f"127.0.0.1:{self.upstream.port}"
        )
        self.port = self.running.port

    def test_every_answer_has_the_security_headers_once(self):
        for target in ("/", "/assets/app-1a2b.js", "/s/abc", "/nowhere", "/api/info", "/connection/websocket"):
            with self.subTest(target=target):
                answer = ask(self.port, target)
                policy = answer.one("Content-Security-Policy")
                self.assertIn("default-src 'none'", policy)
                self.assertIn("connect-src 'self'", policy)
                self.assertIn("frame-ancestors 'none'", policy)
                self.assertNotIn("unsafe", policy)
                self.assertEqual(answer.one("X-Content-Type-Options"), "nosniff")
                self.assertEqual(answer.one("X-Frame-Options"), "DENY")
                self.assertEqual(answer.one("Referrer-Policy"), "no-referrer")
                self.assertEqual(answer.one("Cross-Origin-Opener-Policy"), "same-origin")
                self.assertEqual(answer.one("Server"), "nginx")
                self.assertIsNone(answer.one("Strict-Transport-Security"), "there is no TLS here")

    def test_files_are_compressed_and_answers_of_the_api_are_not(self):
        zipped = {"Accept-Encoding": "gzip"}
        script = ask(self.port, "/assets/app-1a2b.js", headers=zipped)
        self.assertEqual(gzip.decompress(script.body), self.script)
        self.assertLess(len(script.body), len(self.script) / 10)
        self.assertIn("Accept-Encoding", script.one("Vary"))
        self.assertEqual(script.one("Content-Type"), "text/javascript; charset=utf-8")
        self.assertEqual(ask(self.port, "/", headers=zipped).one("Content-Encoding"), "gzip")
        self.assertEqual(ask(self.port, "/assets/app-1a2b.js").body, self.script)
        ready = ask(self.port, "/assets/ready-1a2b.css", headers=zipped)
        self.assertEqual(gzip.decompress(ready.body), b"b{}" * 1000, "the file that was compressed before")
        for target in ("/api/info", "/connection/sse"):
            self.assertIsNone(ask(self.port, target, headers=zipped).one("Content-Encoding"))

    def test_names_with_a_digest_are_kept_for_long_and_pages_are_not(self):
        self.assertEqual(ask(self.port, "/assets/app-1a2b.js").one("Cache-Control"), "public, max-age=31536000, immutable")
        self.assertEqual(ask(self.port, "/").one("Cache-Control"), "no-cache")
        self.assertEqual(ask(self.port, "/s/abc").one("Cache-Control"), "no-cache")
        self.assertIsNone(ask(self.port, "/api/info").one("Cache-Control"))
        self.assertIsNone(ask(self.port, "/assets/nothing.js").one("Cache-Control"))

    def test_paths_of_the_application_are_its_page_and_others_are_404(self):
        page = ask(self.port, "/").body
        self.assertEqual(ask(self.port, "/s/abc?x=1").body, page)
        self.assertEqual(ask(self.port, "/rooms/1/2").body, page)
        for target in ("/nowhere", "/.secret", "/s/../.secret", "/assets/", "/assets/../../nginx/nginx.conf", "/metrics"):
            with self.subTest(target=target):
                answer = ask(self.port, target)
                self.assertIn(answer.status, (400, 403, 404))
                self.assertNotIn(b"secret", answer.body)


class Tls(Base):
    def setUp(self):
        super().setUp()
        certificate, key = self.folder / "cert.pem", self.folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
            check=True, capture_output=True,
        )
        self.tls = trusting(certificate)
        self.upstream = self.recorder()
        self.https = free_port()
        self.running = self.nginx(
            self.upstream, TLS_CERTIFICATE=certificate, TLS_KEY=key, HTTPS=f"127.0.0.1:{self.https}",
            HTTPS_SUFFIX=f":{self.https}",
        )

    def test_requests_come_over_tls_and_say_so(self):
        answer = ask(self.https, "/connection/sse", tls=self.tls)
        self.assertEqual(answer.status, 200)
        self.assertEqual(self.upstream.headers().get("X-Forwarded-Proto"), "https")
        self.assertEqual(answer.one("Strict-Transport-Security"), "max-age=31536000")

    def test_without_tls_clients_are_sent_on(self):
        answer = ask(self.running.port, "/connection/websocket?a=b")
        self.assertEqual(answer.status, 308)
        self.assertEqual(answer.one("Location"), f"https://plenum.test:{self.https}/connection/websocket?a=b")
        self.assertEqual(self.upstream.requests, [])

    def test_a_handshake_goes_through(self):
        with self.assertRaises(Refused) as refused:  # by the upstream, which only records
            WebSocket(self.https, tls=self.tls)
        self.assertEqual(refused.exception.answer.status, 200)
        self.assertEqual(self.upstream.headers().get("Upgrade"), "websocket")

    def test_old_protocols_and_weak_ciphers_are_refused(self):
        def settles(change):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            change(context)
            try:
                with socket.create_connection(("127.0.0.1", self.https), SECONDS) as raw:
                    with context.wrap_socket(raw, server_hostname="localhost") as connection:
                        return connection.version()
            except (ssl.SSLError, ConnectionResetError):
                return None

        def only(version):
            def change(context):
                warnings.simplefilter("ignore", DeprecationWarning)  # the old ones are asked for on purpose
                context.minimum_version = context.maximum_version = version
            return change

        def weak(context):
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("ECDHE-ECDSA-AES128-SHA:AES128-SHA:@SECLEVEL=0")

        self.assertEqual(settles(only(ssl.TLSVersion.TLSv1_3)), "TLSv1.3")
        self.assertEqual(settles(only(ssl.TLSVersion.TLSv1_2)), "TLSv1.2")
        self.assertIsNone(settles(only(ssl.TLSVersion.TLSv1_1)))
        self.assertIsNone(settles(weak))

    def test_http2_is_spoken(self):
        context = trusting(self.folder / "cert.pem")
        context.set_alpn_protocols(["h2", "http/1.1"])
        with socket.create_connection(("127.0.0.1", self.https), SECONDS) as raw:
            with context.wrap_socket(raw, server_hostname="localhost") as connection:
                self.assertEqual(connection.selected_alpn_protocol(), "h2")


if __name__ == "__main__":
    cases.run(sys.modules[__name__])

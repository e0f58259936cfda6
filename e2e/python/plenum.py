"""The server under test as the Python suites see it, and named cases that are counted, each with a deadline."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import sys
import time
import traceback
import urllib.request
import uuid

URL = os.environ["PLENUM_URL"]
WS = os.environ["PLENUM_WS"]
PROXY_WS = os.environ["PLENUM_PROXY_WS"]
API_KEY = os.environ["PLENUM_API_KEY"]
CASE_SECONDS = 90
# Why a case that needs to know of clients at another replica cannot run, or None.
NO_PRESENCE = None
if os.environ["PLENUM_PRESENCE"] == "own":
    NO_PRESENCE = "presence is each replica's own without Redis"

_cases = []


def case(name, skip=None):
    """Registers a coroutine function as a case; `skip` says why it cannot run here."""

    def register(body):
        _cases.append((name, body, skip))
        return body

    return register


async def run_cases(only="", after_each=None):
    """Runs the cases whose name contains `only`, prints a line each and the sum; gives the exit code."""
    passed = failed = skipped = 0
    for name, body, skip in _cases:
        if only not in name:
            continue
        if skip:
            skipped += 1
            print(f"skip  {name}: {skip}")
            continue
        begin = time.monotonic()
        problem = None
        try:
            await asyncio.wait_for(body(), CASE_SECONDS)
        except Exception:  # a case may fail in any way
            problem = traceback.format_exc().rstrip().replace("\n", "\n      ")
        if after_each:
            await after_each()
        took = f"{time.monotonic() - begin:.1f} s"
        if problem:
            failed += 1
            print(f"FAIL  {name} ({took})\n      {problem}")
        else:
            passed += 1
            print(f"ok    {name} ({took})")
        sys.stdout.flush()
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


async def until(what, condition, seconds=15):
    """Waits until `condition()` is true and gives its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s for {what() if callable(what) else what}")
        await asyncio.sleep(0.005)


def unique(prefix):
    """A name that no other case uses."""
    return prefix + uuid.uuid4().hex[:12]


def token(claims, ttl=3600, key=None):
    """An HS256 token with these claims that ends in `ttl` seconds."""

    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    body = dict(claims, exp=int(time.time()) + ttl)
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(body).encode())
    secret = (key or os.environ["PLENUM_TOKEN_KEY"]).encode()
    return (signed + b"." + part(hmac.new(secret, signed, hashlib.sha256).digest())).decode()


def _post(url, body=b"", headers=None):
    request = urllib.request.Request(url, data=body, headers=headers or {}, method="POST")
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


async def api(method, **body):
    """Calls the server API and gives its whole reply."""
    headers = {"content-type": "application/json", "x-api-key": API_KEY}
    return await asyncio.to_thread(_post, f"{URL}/api/{method}", json.dumps(body).encode(), headers)


async def publish_many(channel, first, count):
    """Publishes {"n": first} to {"n": first + count - 1} in order."""
    for at in range(first, first + count, 500):
        size = min(500, first + count - at)
        commands = [{"publish": {"channel": channel, "data": {"n": n}}} for n in range(at, at + size)]
        reply = await api("batch", commands=commands)
        wrong = [r for r in reply.get("replies", [{"error": reply}]) if r.get("error")]
        assert not wrong, wrong[0]


async def network(command):
    """A command to the proxy of e2e/serve, for example `cut?after=100`."""
    return await asyncio.to_thread(_post, f"{os.environ['PLENUM_CONTROL']}/{command}")

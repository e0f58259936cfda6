// Publishers and subscribers of one case: `node load.mjs SETTINGS`, commands on stdin, answers as JSON lines on stdout.
//
// SETTINGS is JSON: endpoints (ports of the replicas), apiKey, tokenKey, channels, publishers, subscribers, pauseMs, bytes,
// namespace, and plant (drop, double or swap: what the checker is given is falsified once, to see it notice).
// Commands: start, status, quiet (publishers end; waits for what is under way, then for subscribers; answers with the verdict),
// away and back (all subscribers disconnect; all connect to the first replica, as when there is no other left).

import { createHmac } from 'node:crypto';
import http from 'node:http';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { Witness, check, excused } from './checker.mjs';

const settings = JSON.parse(process.argv[2]);
const requireTool = createRequire(`${process.env.PLENUM_TOOLS}/node/`);
const WebSocket = requireTool('ws');
const builds = { json: requireTool('centrifuge'), protobuf: requireTool('centrifuge/build/protobuf') };
const { endpoints } = settings;

const ATTEMPT_MS = settings.attemptMs ?? 6000; // then the publisher asks another replica, under the same key
const GIVE_UP_MS = 100_000; // less than the time for which a key is remembered
const CATCH_UP_MS = 60_000;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const base64url = (value) => Buffer.from(value).toString('base64url');

function token(user) {
  const signed = `${base64url('{"alg":"HS256","typ":"JWT"}')}.${base64url(JSON.stringify({ sub: user }))}`;
  return `${signed}.${createHmac('sha256', settings.tokenKey).update(signed).digest('base64url')}`;
}

// Subscribers

const witnesses = [];
const clients = [];
let planted = settings.plant ? 50 : 0; // the publication of the first subscriber that is falsified

let only = null; // where everybody connects, when it is not the next replica

/** A WebSocket to the next replica each time, the first time to the one at `home`: what a load balancer does. */
function balanced(home) {
  let turn = home;
  return class extends WebSocket {
    constructor(url, ...rest) {
      super(`ws://127.0.0.1:${only ?? endpoints[turn % endpoints.length]}/connection/websocket`, ...rest);
      turn += 1;
    }
  };
}

function feed(witness, value, offset, at) {
  if (witness !== witnesses[0] || !planted || witness.publications.length !== planted) {
    witness.take(value, offset, at);
    return;
  }
  planted = 0;
  if (settings.plant === 'double') witness.take(value, offset, at);
  if (settings.plant !== 'drop') witness.take(value, offset, at);
}

function subscriber(number) {
  const variant = number % 2 ? 'protobuf' : 'json';
  const channel = channels[number % channels.length];
  const witness = new Witness(`subscriber ${number} (${variant}, ${channel})`, channel);
  const client = new builds[variant].Centrifuge('ws://balanced/connection/websocket', {
    websocket: balanced(number),
    token: token(`user${number}`),
    minReconnectDelay: 50,
    maxReconnectDelay: 1000,
    maxServerPingDelay: 2000,
    timeout: 5000,
  });
  const sub = client.newSubscription(channel, { minResubscribeDelay: 50, maxResubscribeDelay: 1000 });
  witness.resubscribed = -1;
  sub.on('subscribed', ({ wasRecovering, recovered, streamPosition }) => {
    witness.resubscribed += 1;
    if (witness.resubscribed > 0 && !(wasRecovering && recovered)) witness.tell();
    witness.epoch = streamPosition?.epoch ?? '';
  });
  sub.on('publication', ({ data, offset }) => {
    const value = variant === 'json' ? data : JSON.parse(new TextDecoder().decode(data));
    feed(witness, value, offset, Date.now());
  });
  sub.subscribe();
  client.connect();
  witnesses.push(witness);
  clients.push({ client, sub, witness });
}

// Publishers

const channels = Array.from({ length: settings.channels }, (_, i) => `${settings.namespace}:faults-${i}`);
const publishers = Array.from({ length: settings.publishers }, (_, i) => ({
  channel: channels[i % channels.length],
  done: new Map(),
  sent: 0,
  refused: 0,
  unknown: 0,
  stall: 0,
  errors: new Map(),
}));
const agent = new http.Agent({ keepAlive: true });
let going = true;

/** One attempt at one replica: the result, or an error in words. */
function attempt(port, body) {
  return new Promise((resolve) => {
    const headers = { 'content-type': 'application/json', 'x-api-key': settings.apiKey };
    const request = http.request(
      { host: '127.0.0.1', port, path: '/api/publish', method: 'POST', agent, headers, timeout: ATTEMPT_MS },
      (response) => {
        let text = '';
        response.on('data', (part) => (text += part));
        response.on('error', (error) => resolve({ error: error.code ?? error.message }));
        response.on('end', () => {
          if (response.statusCode !== 200) return resolve({ error: `HTTP ${response.statusCode} ${text.slice(0, 100)}` });
          const { result, error } = JSON.parse(text);
          return resolve(error ? { error: `${error.code} ${error.message}`, answered: true } : { result });
        });
      },
    );
    request.on('timeout', () => request.destroy(new Error('no answer')));
    request.on('error', (error) => resolve({ error: error.code ?? error.message }));
    request.end(body);
  });
}

/** Publishes number after number; each is repeated under its key, at other replicas, until it is acknowledged. */
async function publish(publisher, p) {
  const filler = 'x'.repeat(settings.bytes ?? 0);
  let turn = p;
  while (going) {
    const n = (publisher.sent += 1);
    const begin = Date.now();
    const data = { p, n, ...(filler && { filler }) };
    const body = JSON.stringify({ channel: publisher.channel, data, idempotency_key: `${p}-${n}` });
    for (;;) {
      const { result, error, answered } = await attempt(endpoints[turn % endpoints.length], body);
      if (result) {
        publisher.done.set(n, result);
        publisher.stall = Math.max(publisher.stall, Date.now() - begin);
        break;
      }
      publisher.errors.set(error, (publisher.errors.get(error) ?? 0) + 1);
      turn += 1;
      if (settings.stopWhenRefused && answered) {
        publisher.refused += 1;
        return;
      }
      if (Date.now() - begin > GIVE_UP_MS) {
        publisher.unknown += 1;
        return;
      }
      await pause(100);
    }
    // Each publisher changes its replica now and then, so that order is shown across replicas, too.
    if (n % 20 === 0) turn += 1;
    await pause(settings.pauseMs * (0.5 + Math.random()));
  }
}

// Commands

const running = [];
const sum = (values) => values.reduce((a, b) => a + b, 0);
const acknowledged = () => sum(publishers.map(({ done }) => done.size));
const last = ({ done, sent }) => [...Array(sent + 1).keys()].reverse().find((n) => done.has(n)) ?? 0;

/** Subscribers that have neither got the newest acknowledged publication of each publisher of their channel, nor been told. */
function behind() {
  return clients.filter(({ witness }) =>
    publishers.some((publisher, p) => {
      if (publisher.channel !== witness.channel || !publisher.done.size) return false;
      const newest = last(publisher);
      const there = witness.publications.slice(-2000).some((got) => got.p === p && got.n >= newest);
      return !there && !excused(witness, p, newest).has(newest);
    }),
  );
}

const subscribed = () => clients.filter(({ sub }) => sub.state === 'subscribed').length;

function status() {
  return {
    acknowledged: acknowledged(),
    least: Math.min(...publishers.map(({ done }) => done.size)),
    refused: sum(publishers.map(({ refused }) => refused)),
    subscribed: subscribed(),
    told: sum(witnesses.map(({ told }) => told.length)),
    untold: witnesses.filter(({ told }) => !told.length).map(({ name }) => name),
    delivered: sum(witnesses.map(({ publications }) => publications.length)),
  };
}

async function start() {
  for (let number = 0; number < settings.subscribers; number += 1) subscriber(number);
  const end = Date.now() + 30_000;
  while (subscribed() < clients.length) {
    if (Date.now() > end) throw new Error(`${subscribed()} of ${clients.length} subscribed within 30 s`);
    await pause(20);
  }
  publishers.forEach((publisher, p) => running.push(publish(publisher, p)));
  return status();
}

function away() {
  for (const { client } of clients) client.disconnect();
  return status();
}

function back() {
  [only] = endpoints;
  for (const { client } of clients) client.connect();
  return status();
}

async function quiet() {
  going = false;
  await Promise.all(running);
  const begin = Date.now();
  while (behind().length && Date.now() - begin < CATCH_UP_MS) await pause(50);
  const caughtUp = Date.now() - begin;
  await pause(1500); // what comes twice may come late
  if (settings.plant === 'swap') {
    const list = witnesses[0].publications;
    [list[50], list[51]] = [list[51], list[50]];
  }
  const errors = new Map();
  for (const each of publishers) for (const [text, count] of each.errors) errors.set(text, (errors.get(text) ?? 0) + count);
  return {
    ...status(),
    ...check(witnesses, publishers),
    behind: behind().map(({ witness, sub, client }) => `${witness.name}: ${client.state}, ${sub.state}`),
    caughtUp,
    unknown: sum(publishers.map(({ unknown }) => unknown)),
    errors: Object.fromEntries(errors),
    epochs: new Set(witnesses.flatMap(({ publications }) => publications.map(({ epoch }) => epoch))).size,
    deliveryStall: Math.max(...witnesses.map(({ stall }) => stall)),
    publishStall: Math.max(...publishers.map(({ stall }) => stall)),
    returns: sum(witnesses.map(({ resubscribed }) => resubscribed)),
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    const answer = await { start, status, away, back, quiet }[line.trim()]();
    console.log(JSON.stringify(answer));
  } catch (error) {
    console.log(JSON.stringify({ failure: String(error.stack ?? error) }));
  }
}
process.exit(0);

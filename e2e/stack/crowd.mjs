// Many clients of the JavaScript SDK through one address, and publishers: `node crowd.mjs SETTINGS`, commands on stdin, answers
// as JSON lines on stdout.
//
// SETTINGS is JSON: port (nginx), apiKey, namespace, clients, channels, apiPublishers, sdkPublishers, pauseMs.
// Commands: start; grow (a tenth more clients); phase (what happened since the last one); status; quiet (publishers end, waits for
// subscribers, answers with the verdict).

import http from 'node:http';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { Witness, check } from '../faults/checker.mjs';

const settings = JSON.parse(process.argv[2]);
const requireTool = createRequire(`${process.env.PLENUM_TOOLS}/node/`);
const WebSocket = requireTool('ws');
const builds = [requireTool('centrifuge'), requireTool('centrifuge/build/protobuf')];

const RAMP_PER_SECOND = 100;
const ATTEMPT_MS = 6000;
const GIVE_UP_MS = 60_000; // less than the time for which a key is remembered
const CATCH_UP_MS = 60_000;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const channels = Array.from({ length: settings.channels }, (_, i) => `${settings.namespace}:crowd-${i}`);

// Handshakes, as clients see them

const handshakes = { opened: 0, failed: new Map(), perSecond: new Map() };

class Counted extends WebSocket {
  constructor(...rest) {
    super(...rest);
    let open = false;
    this.on('open', () => {
      open = true;
      handshakes.opened += 1;
      const second = Math.floor(Date.now() / 1000);
      handshakes.perSecond.set(second, (handshakes.perSecond.get(second) ?? 0) + 1);
    });
    this.on('error', (error) => {
      if (!open) handshakes.failed.set(error.message, (handshakes.failed.get(error.message) ?? 0) + 1);
    });
  }
}

// Subscribers

const clients = []; // they were there from the first publication on
const late = []; // those of `grow`, whose connections count and nothing else

function subscriber(number, among) {
  const json = number % 2 === 0;
  const channel = channels[number % channels.length];
  const witness = new Witness(`client ${number} (${json ? 'json' : 'protobuf'}, ${channel})`, channel);
  const client = new builds[number % 2].Centrifuge(`ws://127.0.0.1:${settings.port}/connection/websocket`, {
    websocket: Counted,
    timeout: 10_000,
  });
  const sub = client.newSubscription(channel, { positioned: true, recoverable: true });
  const newest = new Map(); // number by sender
  witness.joined = 0;
  sub.on('subscribed', ({ wasRecovering, recovered, streamPosition }) => {
    if (witness.joined > 0 && !(wasRecovering && recovered)) witness.tell();
    witness.joined += 1;
    witness.epoch = streamPosition?.epoch ?? '';
  });
  sub.on('publication', ({ data, offset }) => {
    const value = json ? data : JSON.parse(new TextDecoder().decode(data));
    witness.take(value, offset, Date.now());
    newest.set(value.p, Math.max(value.n, newest.get(value.p) ?? 0));
  });
  sub.subscribe();
  client.connect();
  among.push({ client, sub, witness, json, newest });
}

const subscribed = () => [...clients, ...late].filter(({ sub }) => sub.state === 'subscribed').length;

async function enter(count, among) {
  const until = among.length + count;
  while (among.length < until) {
    for (let i = 0; i < RAMP_PER_SECOND / 20 && among.length < until; i += 1) subscriber(among.length, among);
    await pause(50);
  }
  const end = Date.now() + 60_000;
  while (subscribed() < clients.length + late.length) {
    if (Date.now() > end) throw new Error(`${subscribed()} of ${clients.length + late.length} subscribed`);
    await pause(50);
  }
}

// Publishers. Each entry is one sender whose numbers must arrive in order.

const senders = [];
const running = [];
const counts = { apiAcknowledged: 0, apiRepeated: 0, apiFailed: 0, sdkAcknowledged: 0, sdkFailed: 0 };
const errors = new Map();
const agent = new http.Agent({ keepAlive: true });
let going = true;

const sender = (channel) => senders[senders.push({ channel, p: senders.length, sent: 0, done: new Map() }) - 1];
const noted = (error) => errors.set(error, (errors.get(error) ?? 0) + 1);

function attempt(body) {
  return new Promise((resolve) => {
    const headers = { 'content-type': 'application/json', 'x-api-key': settings.apiKey };
    const options = { host: '127.0.0.1', port: settings.port, path: '/api/publish', method: 'POST', agent, headers };
    const request = http.request({ ...options, timeout: ATTEMPT_MS }, (response) => {
      let text = '';
      response.on('data', (part) => (text += part));
      response.on('error', (error) => resolve({ error: error.code ?? error.message }));
      response.on('end', () => {
        if (response.statusCode !== 200) return resolve({ error: `HTTP ${response.statusCode}` });
        const { result, error } = JSON.parse(text);
        return resolve(error ? { error: `${error.code} ${error.message}` } : { result });
      });
    });
    request.on('timeout', () => request.destroy(new Error('no answer')));
    request.on('error', (error) => resolve({ error: error.code ?? error.message }));
    request.end(body);
  });
}

const rest = () => pause(settings.pauseMs * (0.5 + Math.random()));

/** Through the server API: each publication is repeated under its key until it is acknowledged. */
async function publishByApi(channel) {
  const { p, done } = sender(channel);
  for (let n = 1; going; n += 1) {
    const body = JSON.stringify({ channel, data: { p, n }, idempotency_key: `crowd-${p}-${n}` });
    const begin = Date.now();
    for (;;) {
      const { result, error } = await attempt(body);
      if (result) {
        done.set(n, result);
        counts.apiAcknowledged += 1;
        break;
      }
      noted(error);
      if (Date.now() - begin > GIVE_UP_MS) {
        counts.apiFailed += 1;
        return;
      }
      counts.apiRepeated += 1;
      await pause(100);
    }
    await rest();
  }
}

/** As a client: what fails is not repeated, and what comes next may overtake it, so it counts as another sender's. */
async function publishBySdk(number) {
  const { sub, witness, json } = clients[number];
  let own = sender(witness.channel);
  while (going) {
    const n = (own.sent += 1);
    const data = { p: own.p, n };
    try {
      await sub.publish(json ? data : new TextEncoder().encode(JSON.stringify(data)));
      own.done.set(n, null);
      counts.sdkAcknowledged += 1;
    } catch (error) {
      noted(`SDK: ${error.code} ${error.message}`);
      counts.sdkFailed += 1;
      own = sender(witness.channel);
    }
    await rest();
  }
}

/** A client is told no position: it is taken from whoever got the publication, and from nowhere when nobody did. */
function placeSdkPublications() {
  const seen = new Map();
  for (const { witness } of clients) {
    for (const { p, n, offset, epoch } of witness.publications) seen.set(`${p}:${n}`, { offset, epoch });
  }
  for (const { p, done } of senders) {
    for (const [n, position] of done) if (!position) done.set(n, seen.get(`${p}:${n}`) ?? { offset: `none of ${p}:${n}`, epoch: '' });
  }
}

// Commands

const delivered = () => clients.reduce((sum, { witness }) => sum + witness.publications.length, 0);
const status = () => ({ ...counts, clients: clients.length + late.length, subscribed: subscribed(), delivered: delivered(),
  opened: handshakes.opened });

async function start() {
  await enter(settings.clients, clients);
  phase();
  for (let i = 0; i < settings.apiPublishers; i += 1) running.push(publishByApi(channels[i % channels.length]));
  for (let i = 0; i < settings.sdkPublishers; i += 1) running.push(publishBySdk(i));
  return status();
}

async function grow() {
  await enter(Math.ceil(settings.clients / 10), late);
  return status();
}

/** Handshakes since the last phase: opened, failed in whose words, the most in one second. */
function phase() {
  const found = {
    opened: handshakes.opened,
    failed: Object.fromEntries(handshakes.failed),
    mostPerSecond: Math.max(0, ...handshakes.perSecond.values()),
    errors: Object.fromEntries(errors),
  };
  handshakes.opened = 0;
  handshakes.failed.clear();
  handshakes.perSecond.clear();
  errors.clear();
  return { ...status(), ...found };
}

/** Clients that have not got the newest acknowledged publication of a sender of their channel. */
function behind() {
  const last = senders.map(({ done }) => Math.max(0, ...done.keys()));
  return clients.filter(({ witness, newest }) =>
    senders.some(({ channel, p }) => channel === witness.channel && (newest.get(p) ?? 0) < last[p]),
  );
}

async function quiet() {
  going = false;
  await Promise.all(running);
  const begin = Date.now();
  while (behind().length && Date.now() - begin < CATCH_UP_MS) await pause(200);
  await pause(2000); // what comes twice may come late
  placeSdkPublications();
  return { ...status(), ...check(clients.map(({ witness }) => witness), senders),
    behind: behind().slice(0, 5).map(({ witness, sub, client }) => `${witness.name}: ${client.state}, ${sub.state}`) };
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    console.log(JSON.stringify(await { start, grow, phase, status, quiet }[line.trim()]()));
  } catch (error) {
    console.log(JSON.stringify({ failure: String(error.stack ?? error) }));
  }
}
process.exit(0);

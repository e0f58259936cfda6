// Clients and publishers of the session cases: `node clients.mjs SETTINGS`, a command (JSON) per line on stdin, an answer per line
// on stdout. SETTINGS is JSON: endpoints (ports of the replicas), apiKey, tokenKey, channels, publishers, pauseMs.
//
// Clients come in groups. Each returns the resume token of its last connect reply through `getData`, counts how often the SDK
// asked for a connection token, and writes down its client ids.

import { createHmac } from 'node:crypto';
import http from 'node:http';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { Witness, check } from '../faults/checker.mjs';
import { answers, takeovers } from './takeover.mjs';

const settings = JSON.parse(process.argv[2]);
const requireTool = createRequire(`${process.env.PLENUM_TOOLS}/node/`);
const WebSocket = requireTool('ws');
const builds = { json: requireTool('centrifuge'), protobuf: requireTool('centrifuge/build/protobuf') };
const { endpoints, channels } = settings;

const ATTEMPT_MS = 5000; // then the publisher asks another replica, under the same key
const SLOW_MS = 300; // publications that took longer are named
const GIVE_UP_MS = 60_000;
const CATCH_UP_MS = 30_000;
const PROBE_MS = 120_000; // longer than any fault
const LOOK_MS = 100;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const base64url = (value) => Buffer.from(value).toString('base64url');

async function until(what, condition, ms) {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`not within ${ms / 1000} s: ${what()}`);
    await pause(10);
  }
}

function token(user) {
  const signed = `${base64url('{"alg":"HS256","typ":"JWT"}')}.${base64url(JSON.stringify({ sub: user }))}`;
  return `${signed}.${createHmac('sha256', settings.tokenKey).update(signed).digest('base64url')}`;
}

/** How late this process ran what was due, since the last look: all clients are late then. */
let late = 0;
let lately = 0; // since the stalls were asked for
let looked = Date.now();
setInterval(() => {
  late = Math.max(late, Date.now() - looked - LOOK_MS);
  lately = Math.max(lately, Date.now() - looked - LOOK_MS);
  looked = Date.now();
}, LOOK_MS);

// Clients

const groups = new Map();
const witnesses = [];

/**
 * Connects to the replica `home` first, then to the next one each time, or always to `home` when pinned. `open` has the socket, its
 * replica, and the pings that came on it (of JSON).
 */
function sockets(home, pinned, open) {
  let turn = home;
  return class extends WebSocket {
    constructor(url, ...rest) {
      super(`ws://127.0.0.1:${endpoints[turn % endpoints.length]}/connection/websocket`, ...rest);
      open.socket = this;
      open.replica = turn % endpoints.length;
      open.pings = 0;
      this.on('message', (data, binary) => {
        if (!binary && open.socket === this) open.pings += String(data).split('\n').filter((line) => line === '{}').length;
      });
      if (!pinned) turn += 1;
    }
  };
}

class Member {
  ids = []; // client ids in the order in which it had them
  connects = 0;
  asked = 0; // calls of getToken
  codes = []; // why it was disconnected, for good or not
  seen = []; // joins and leaves: {kind, client, at}
  errors = [];
  state = {};

  constructor({ user, channel, variant = 'json', home, pinned = false, data, bare = false, patience = 2000, watch = false }) {
    this.user = user;
    this.data = data;
    const getToken = async () => {
      this.asked += 1;
      return token(user);
    };
    this.client = new builds[variant].Centrifuge('ws://balanced/connection/websocket', {
      websocket: sockets(home, pinned, this.state),
      ...(bare ? {} : { getToken }),
      getData: async () => this.data ?? (variant === 'json' ? {} : new TextEncoder().encode('{}')),
      minReconnectDelay: 50,
      maxReconnectDelay: 500,
      maxServerPingDelay: patience,
    });
    this.client.on('connected', ({ client, data: reply }) => {
      this.connects += 1;
      this.connectedAt = Date.now();
      if (this.ids.at(-1) !== client) this.ids.push(client);
      this.data = reply ?? this.data;
    });
    for (const event of ['connecting', 'disconnected'])
      this.client.on(event, ({ code }) => {
        this.codes.push(code);
        if (event === 'disconnected') this.endedAt = Date.now();
      });
    this.client.on('error', ({ error }) => this.errors.push(`${error?.code} ${error?.message}`));
    if (channel) this.subscribe(channel, variant, watch);
    this.client.connect();
  }

  subscribe(channel, variant, watch) {
    this.sub = this.client.newSubscription(channel, { minResubscribeDelay: 50, maxResubscribeDelay: 500 });
    const witness = new Witness(`${this.user} (${variant}, ${channel})`, channel);
    witness.resubscribed = -1;
    witness.late = going ? 1 : 0; // what was published before its first subscribe is not its own
    if (going) witness.tell();
    this.sub.on('subscribed', ({ wasRecovering, recovered, streamPosition }) => {
      witness.resubscribed += 1;
      if (witness.resubscribed > 0 && !(wasRecovering && recovered)) witness.tell();
      witness.epoch = streamPosition?.epoch ?? '';
    });
    this.sub.on('publication', ({ data, offset }) => {
      const value = variant === 'json' ? data : JSON.parse(new TextDecoder().decode(data));
      witness.take(value, offset, Date.now());
    });
    if (watch)
      for (const kind of ['join', 'leave'])
        this.sub.on(kind, ({ info }) => this.seen.push({ kind, client: info.client, user: info.user, at: Date.now() }));
    this.sub.subscribe();
    this.witness = witness;
    witnesses.push(witness);
  }

  ready() {
    return this.client.state === 'connected' && (!this.sub || this.sub.state === 'subscribed');
  }

  described() {
    const { user, ids, connects, asked, codes, errors, seen, connectedAt, endedAt } = this;
    const states = { client: this.client.state, sub: this.sub?.state, replica: this.state.replica, pings: this.state.pings };
    return { user, ids, connects, asked, codes, errors: errors.slice(-5), seen, connectedAt, endedAt, ...states };
  }
}

const members = (group) => groups.get(group) ?? [];
const notReady = (group) => members(group).filter((member) => !member.ready());
const trouble = (list) => `${list.length} not ready: ${JSON.stringify(list.slice(0, 2).map((each) => each.described()))}`;

/** Whether everybody is there, on another connection than the `connects` before. */
function returned(group, connects) {
  return members(group).every((member, i) => member.ready() && member.connects > (connects?.[i] ?? 0));
}

// Publishers

const publishers = [];
const running = [];
let slow = []; // publications that took long since the last look
let troubles = new Map(); // answers of publishes since the last look, with the replica
const agent = new http.Agent({ keepAlive: true });
let going = false;

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
          if (response.statusCode !== 200) return resolve({ error: `HTTP ${response.statusCode}` });
          const { result, error } = JSON.parse(text);
          return resolve(error ? { error: `${error.code} ${error.message}` } : { result });
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
  let turn = p;
  while (going) {
    const n = (publisher.sent += 1);
    const begin = Date.now();
    const body = JSON.stringify({ channel: publisher.channel, data: { p, n }, idempotency_key: `${p}-${n}` });
    for (;;) {
      const replica = turn % endpoints.length;
      const { result, error } = await attempt(endpoints[replica], body);
      if (result) {
        publisher.done.set(n, result);
        const took = Date.now() - begin;
        publisher.stall = Math.max(publisher.stall, took);
        if (took > SLOW_MS) slow.push({ at: begin, took, channel: publisher.channel, replica });
        break;
      }
      publisher.errors.set(error, (publisher.errors.get(error) ?? 0) + 1);
      const where = `replica ${replica}: ${error}`;
      troubles.set(where, (troubles.get(where) ?? 0) + 1);
      turn += 1;
      if (Date.now() - begin > GIVE_UP_MS) {
        publisher.unknown += 1;
        return;
      }
      await pause(50);
    }
    if (n % 20 === 0) turn += 1;
    await pause(settings.pauseMs * (0.5 + Math.random()));
  }
}

// Subscribe probes: each loop subscribes to a channel of its own, again and again, and notes how long that takes.

const probes = { going: false, loops: [], clients: [], longest: 0, done: 0, errors: new Map() };

async function probeLoop(client, channel) {
  while (probes.going) {
    const begin = Date.now();
    const sub = client.newSubscription(channel, { minResubscribeDelay: 50, maxResubscribeDelay: 200 });
    sub.on('error', ({ error }) => {
      const text = `${error?.code} ${error?.message}`;
      probes.errors.set(text, (probes.errors.get(text) ?? 0) + 1);
    });
    sub.subscribe();
    try {
      await sub.ready(PROBE_MS);
      probes.done += 1;
    } catch (error) {
      probes.errors.set(`refused ${error?.code}`, (probes.errors.get(`refused ${error?.code}`) ?? 0) + 1);
    }
    probes.longest = Math.max(probes.longest, Date.now() - begin);
    sub.unsubscribe();
    client.removeSubscription(sub);
    await pause(100);
  }
}

// Commands

const acknowledged = () => publishers.reduce((sum, { done }) => sum + done.size, 0);
const newest = ({ done }) => Math.max(0, ...done.keys());

/** Living subscribers that have not got the newest acknowledged publication of each publisher of their channel. */
function behind() {
  const live = [...groups.values()].flat().filter((member) => member.sub && !member.dismissed);
  return live.filter(({ witness }) =>
    publishers.some((publisher, p) => {
      if (publisher.channel !== witness.channel || !publisher.done.size) return false;
      const last = newest(publisher);
      return !witness.publications.slice(-2000).some((got) => got.p === p && got.n >= last);
    }),
  );
}

const commands = {
  ...takeovers({ WebSocket, endpoints, token, until }),

  /** A group of `count` clients spread over `channels`, at the replicas `homes` in turn; answers when all are there. */
  async group({ group, count, homes = [0, 1, 2], seconds = 30, channel, user, ...options }) {
    const first = members(group).length;
    const made = Array.from({ length: count }, (_, i) => {
      const home = homes[i % homes.length];
      const place = channel === undefined ? channels[(first + i) % channels.length] : channel;
      return new Member({ user: user ?? `${group}-${first + i}`, channel: place, home, variant: Math.floor(i / channels.length) % 2 ? 'protobuf' : 'json', ...options });
    });
    groups.set(group, [...members(group), ...made]);
    await until(() => trouble(notReady(group)), () => !notReady(group).length, seconds * 1000);
    return commands.look({ group });
  },

  look({ group }) {
    return { members: members(group).map((member) => member.described()) };
  },

  /** Waits until everybody of a group is there, on a newer connection than `connects` says. */
  async back({ group, connects, seconds = 20 }) {
    await until(() => trouble(notReady(group)), () => returned(group, connects), seconds * 1000);
    return commands.look({ group });
  },

  /** Waits until everybody of a group was sent away for good. */
  async ended({ group, seconds = 10 }) {
    const left = () => members(group).filter(({ client }) => client.state !== 'disconnected');
    await until(() => trouble(left()), () => !left().length, seconds * 1000);
    return commands.look({ group });
  },

  /** Ends the clients of a group; they do not come back. */
  dismiss({ group }) {
    for (const member of members(group)) {
      member.dismissed = true;
      member.client.disconnect();
    }
    const ended = members(group).map((member) => member.described());
    groups.delete(group);
    return { members: ended };
  },

  /** Breaks the sockets of a group, or of its first `count` (at `replica`), without a word. */
  cut({ group, count, replica }) {
    const here = members(group).filter(({ state }) => replica === undefined || state.replica === replica);
    for (const { state } of here.slice(0, count)) state.socket?.terminate();
    return {};
  },

  /** The resume data that a client would return next, as text of JSON. */
  data({ group, index = 0 }) {
    return { data: members(group)[index].data };
  },

  publish() {
    going = true;
    for (let p = 0; p < settings.publishers; p += 1) {
      const channel = channels[p % channels.length];
      publishers.push({ channel, done: new Map(), sent: 0, unknown: 0, stall: 0, errors: new Map() });
      running.push(publish(publishers[p], p));
    }
    return {};
  },

  /** Forgets the longest stalls; answers with those so far. Of delivery: of clients of the groups that stayed connected. */
  stalls({ groups: names }) {
    const all = names.flatMap((name) => members(name));
    const stayed = all.filter((member) => member.connects === (member.marked ?? member.connects));
    const [worst] = stayed.toSorted((a, b) => b.witness.stall - a.witness.stall);
    const answer = {
      delivery: worst?.witness.stall ?? 0,
      worst: worst?.witness.name,
      returned: all.filter((member) => !stayed.includes(member)).map(({ user, codes }) => `${user} ${codes.slice(-2)}`),
      publishing: Math.max(0, ...publishers.map(({ stall }) => stall)),
      typical: publishers.map(({ stall }) => stall).toSorted((a, b) => a - b)[Math.floor(publishers.length / 2)] ?? 0,
      late: lately,
      publishErrors: Object.fromEntries(troubles),
      slow: slow.toSorted((a, b) => b.took - a.took).slice(0, 5),
      subscribe: probes.longest,
      subscribes: probes.done,
      subscribeErrors: Object.fromEntries(probes.errors),
    };
    for (const member of [...groups.values()].flat()) member.marked = member.connects;
    for (const witness of witnesses) witness.stall = 0;
    for (const publisher of publishers) publisher.stall = 0;
    lately = 0;
    [slow, troubles] = [[], new Map()];
    Object.assign(probes, { longest: 0, done: 0, errors: new Map() });
    return answer;
  },

  async probe({ count, namespace }) {
    probes.going = true;
    for (let i = 0; i < count; i += 1) {
      const client = new builds.json.Centrifuge('ws://balanced/connection/websocket', {
        websocket: sockets(i, false, {}),
        token: token(`probe-${i}`),
        maxServerPingDelay: 2000,
        minReconnectDelay: 50,
        maxReconnectDelay: 500,
      });
      client.connect();
      await client.ready(10_000);
      probes.clients.push(client);
      probes.loops.push(probeLoop(client, `${namespace}:probe-${i}`));
    }
    return {};
  },

  async probed() {
    probes.going = false;
    await Promise.all(probes.loops);
    for (const client of probes.clients) client.disconnect();
    Object.assign(probes, { loops: [], clients: [] });
    return {};
  },

  /** Signs tokens with another key from now on. Answers how replicas close a connect with a token of the one before. */
  async key({ tokenKey, ports }) {
    const before = token('somebody');
    settings.tokenKey = tokenKey;
    return { codes: await answers(WebSocket, ports, before) };
  },

  /** What each replica answers to a connect of this user. */
  async answers({ user }) {
    return { answers: await answers(WebSocket, endpoints, token(user)) };
  },

  /** Changes how long publishers wait. */
  pace({ pauseMs }) {
    settings.pauseMs = pauseMs;
    return {};
  },

  late() {
    const answer = { late };
    late = 0;
    return answer;
  },

  now() {
    return { least: Math.min(...publishers.map(({ done }) => done.size)) };
  },

  /** Ends the publishers, waits until everybody has everything, and says what was wrong. */
  async quiet() {
    going = false;
    await Promise.all(running);
    const begin = Date.now();
    while (behind().length && Date.now() - begin < CATCH_UP_MS) await pause(50);
    await pause(500); // what comes twice may come late
    const late = new Set(behind());
    const live = [...groups.values()].flat().filter((member) => member.sub && !member.dismissed);
    const result = check(live.map(({ witness }) => witness), publishers);
    const errors = new Map();
    for (const each of publishers) for (const [text, count] of each.errors) errors.set(text, (errors.get(text) ?? 0) + count);
    return {
      ...result,
      told: result.told - live.reduce((sum, { witness }) => sum + witness.late, 0),
      acknowledged: acknowledged(),
      subscribers: live.length,
      behind: [...late].map((member) => member.described()).slice(0, 3),
      unknown: publishers.reduce((sum, { unknown }) => sum + unknown, 0),
      errors: Object.fromEntries(errors),
    };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  try {
    const { run, ...rest } = JSON.parse(line);
    console.log(JSON.stringify(await commands[run](rest)));
  } catch (error) {
    console.log(JSON.stringify({ failure: String(error.stack ?? error) }));
  }
}
process.exit(0);

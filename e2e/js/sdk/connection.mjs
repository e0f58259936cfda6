// Connecting, tokens and their refresh, and what closes a connection.

import assert from 'node:assert/strict';
import { test, until } from '../cases.mjs';
import { all, connect, encode, event, newClient, subscribe } from '../clients.mjs';
import { api, keptLog, network, requireTool, token, unique, url, ws } from '../plenum.mjs';
import { variant } from './variant.mjs';

const WebSocket = requireTool('ws');

test('connect with a token', async () => {
  const client = await connect(variant);
  assert.equal(client.state, 'connected');
  assert.match(client.id, /^.{8,}$/);
  assert.equal(all(client.log, 'connected')[0].transport, 'websocket');
});

test('connect straight to the server, without the proxy', async () => {
  assert.equal((await connect(variant, { endpoint: ws })).state, 'connected');
});

test('connect without a token is refused for good', async () => {
  const client = newClient(variant, { token: '' });
  client.connect();
  const { code } = await event(client.log, 'disconnected');
  assert.equal(code, 3501);
  assert.equal(all(client.log, 'connected').length, 0);
});

test('a token with a wrong signature is refused for good', async () => {
  const client = newClient(variant, { token: token({ sub: 'x' }, { ttl: 60, key: 'another key' }) });
  client.connect();
  assert.equal((await event(client.log, 'disconnected')).code, 3500);
});

test('an unsigned token is refused for good', async () => {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const client = newClient(variant, { token: `${part({ alg: 'none', typ: 'JWT' })}.${part({ sub: 'x' })}.` });
  client.connect();
  assert.equal((await event(client.log, 'disconnected')).code, 3500);
});

test('an expired token makes the SDK ask for a new one, then connect', async () => {
  let asked = 0;
  const user = unique('user');
  const client = newClient(variant, {
    token: token({ sub: user }, { ttl: -60 }),
    getToken: async () => {
      asked += 1;
      return token({ sub: user }, { ttl: 3600 });
    },
  });
  client.connect();
  await event(client.log, 'connected');
  assert.equal(asked, 1);
});

test('a token is refreshed before it ends, and the connection stays', async () => {
  let asked = 0;
  const user = unique('user');
  const client = newClient(variant, {
    token: token({ sub: user }, { ttl: 4 }),
    getToken: async () => {
      asked += 1;
      return token({ sub: user }, { ttl: asked < 2 ? 4 : 3600 });
    },
  });
  client.connect();
  await event(client.log, 'connected');
  await until('the second refresh', () => asked === 2);
  const channel = unique('chat:');
  const sub = await subscribe(client, channel);
  await sub.publish(encode(variant, { still: 'here' }));
  await event(sub.log, 'publication');
  assert.equal(all(client.log, 'connecting').length, 1, 'it reconnected');
  assert.deepEqual(all(client.log, 'error'), []);
});

test('subscriptions made before connecting travel with the connect command', async () => {
  const client = newClient(variant);
  const channel = unique('many');
  const subs = Array.from({ length: 50 }, (_, i) => client.newSubscription(`${channel}-${i}`));
  for (const sub of subs) sub.subscribe();
  client.connect();
  await until('50 subscriptions', () => subs.every((sub) => sub.state === 'subscribed'));
  const { channels } = await api('channels', { pattern: `${channel}-*` });
  assert.equal(Object.keys(channels).length, 50);
});

test('one subscription more than the limit is refused with 106', async () => {
  const client = await connect(variant);
  const channel = unique('limit');
  const subs = Array.from({ length: 128 }, (_, i) => client.newSubscription(`${channel}-${i}`));
  for (const sub of subs) sub.subscribe();
  await until('128 subscriptions', () => subs.every((sub) => sub.state === 'subscribed'));
  const errors = [];
  const last = client.newSubscription(`${channel}-last`);
  last.on('unsubscribed', (context) => errors.push(context.code));
  last.subscribe();
  await until('the refusal', () => errors.length);
  assert.equal(errors[0], 106);
  assert.equal(client.state, 'connected');
});

test('an RPC that nobody answers gives error 108', async () => {
  const client = await connect(variant);
  await assert.rejects(client.rpc('anything', encode(variant, {})), { code: 108 });
  assert.equal(client.state, 'connected');
});

test('a frame over the limit closes with the code for message size', async () => {
  const client = await connect(variant);
  const big = encode(variant, { text: 'x'.repeat(70_000) });
  client.publish(unique('live:'), big).catch(() => {});
  assert.equal((await event(client.log, 'disconnected')).code, 3);
});

test('disconnect by API reaches the SDK, which stays away', async () => {
  const client = await connect(variant);
  await api('disconnect', { user: client.user });
  const { code, reason } = await event(client.log, 'disconnected');
  assert.deepEqual([code, reason], [3503, 'force disconnect']);
});

test('disconnect by API with a code of its own', async () => {
  const client = await connect(variant);
  await api('disconnect', { user: client.user, disconnect: { code: 4500, reason: 'until tomorrow' } });
  const { code, reason } = await event(client.log, 'disconnected');
  assert.deepEqual([code, reason], [4500, 'until tomorrow']);
});

test('disconnect by API with a code that lets the SDK come back', async () => {
  const client = await connect(variant);
  await api('disconnect', { user: client.user, disconnect: { code: 4001, reason: 'come back' } });
  await event(client.log, 'connecting', (e) => e.code === 4001);
  await until('the return', () => all(client.log, 'connected').length === 2);
});

test('disconnect by API of one client leaves the others of that user', async () => {
  const user = unique('user');
  const first = await connect(variant, { user });
  const second = await connect(variant, { user });
  await api('disconnect', { user, client: first.id });
  await event(first.log, 'disconnected');
  const third = await connect(variant, { user });
  await api('disconnect', { user, whitelist: [third.id] });
  await event(second.log, 'disconnected');
  assert.equal(third.state, 'connected');
});

test('pings keep a quiet connection', async () => {
  for (let attempt = 1; ; attempt += 1) {
    const client = await connect(variant, { maxServerPingDelay: 3000 });
    const begin = Date.now();
    let [looked, stall] = [begin, 0];
    // The SDK leaves on its own 5 s after the last ping, the server 1 s after a ping without a pong: two intervals must have had both.
    await until('the pings', () => {
      const now = Date.now();
      [looked, stall] = [now, Math.max(stall, now - looked)];
      return now - begin > 9500;
    });
    // Where this process stood still its pong may have been late, and the attempt says nothing.
    if (client.log.length > 2 && stall > 500 && attempt < 4) continue;
    assert.deepEqual(client.log.map((e) => e.event), ['connecting', 'connected']);
    return;
  }
});

test('a client that never answers a ping is closed with 3012', async () => {
  const socket = new WebSocket(ws);
  const replies = [];
  socket.on('message', (data) => replies.push(JSON.parse(data)));
  const closed = new Promise((resolve) => socket.on('close', (code, reason) => resolve([code, String(reason)])));
  await new Promise((resolve) => socket.on('open', resolve));
  socket.send(JSON.stringify({ id: 1, connect: { token: token({ sub: 'silent' }, { ttl: 60 }) } }));
  assert.deepEqual(await closed, [3012, 'no pong']);
  assert.equal(replies[0].connect.ping, 2);
  assert.ok(replies[0].connect.client);
}, { only: ['json'] });

test('an Origin that is not allowed gets no connection', async () => {
  const status = (origin) =>
    new Promise((resolve) => {
      const socket = new WebSocket(ws, { origin });
      socket.on('open', () => resolve(101) || socket.close());
      socket.on('unexpected-response', (_, response) => resolve(response.statusCode));
      socket.on('error', () => resolve(0));
    });
  assert.equal(await status('http://app.example'), 101);
  assert.equal(await status('http://elsewhere.example'), 403);
}, { only: ['json'] });

test('a server that restarts closes with a code that brings the SDK back', async () => {
  const client = await connect(variant);
  const channel = unique('chat:');
  const sub = await subscribe(client, channel);
  const subscribed = () => all(sub.log, 'subscribed');
  const { epoch } = subscribed()[0].streamPosition;
  const { problem } = await network('restart');
  assert.equal(problem, null);
  await event(client.log, 'connecting', (e) => e.code === 3001);
  await until('a subscription to another process', () => subscribed().length > 1);
  if (keptLog) {
    assert.deepEqual([subscribed().at(-1).streamPosition.epoch, subscribed().at(-1).recovered], [epoch, true]);
  } else {
    // The in-process log is gone with the process: saying "recovered" would hide a loss.
    assert.notEqual(subscribed().at(-1).streamPosition.epoch, epoch);
    assert.equal(subscribed().at(-1).recovered, false);
  }
  assert.equal((await fetch(`${url}/readyz`)).status, 200);
});

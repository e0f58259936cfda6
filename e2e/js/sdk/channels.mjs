// Subscriptions, publications, presence, join and leave, history.

import assert from 'node:assert/strict';
import { test, until } from '../cases.mjs';
import { all, connect, decode, encode, event, newSubscription, subscribe } from '../clients.mjs';
import { api, noPresence, publishMany, token, unique } from '../plenum.mjs';
import { variant } from './variant.mjs';

const other = variant === 'json' ? 'protobuf' : 'json';

test('a publication reaches every subscriber, also its publisher, with who sent it', async () => {
  const channel = unique('chat:');
  const [alice, bob] = [await connect(variant), await connect(variant)];
  const [a, b] = [await subscribe(alice, channel), await subscribe(bob, channel)];
  await a.publish(encode(variant, { text: 'héllo', n: [1, { deep: null }] }));
  for (const sub of [a, b]) {
    const publication = await event(sub.log, 'publication');
    assert.deepEqual(decode(variant, publication.data), { text: 'héllo', n: [1, { deep: null }] });
    assert.equal(publication.info.user, alice.user);
    assert.equal(publication.info.client, alice.id);
    assert.ok(publication.offset > 0);
  }
});

test('both encodings meet in one channel, in one order', async () => {
  const channel = unique('deep:');
  const mine = await subscribe(await connect(variant), channel);
  const theirs = await subscribe(await connect(other), channel);
  const publishers = [await connect(variant), await connect(other)];
  await Promise.all(
    publishers.map(async (client, p) => {
      for (let n = 0; n < 100; n += 1) await client.publish(channel, encode(client.variant, { p, n }));
    }),
  );
  await until('200 publications', () => mine.values().length === 200 && theirs.values().length === 200);
  assert.deepEqual(mine.values(), theirs.values());
  for (const p of [0, 1]) {
    const order = mine.values().filter((value) => value.p === p).map((value) => value.n);
    assert.deepEqual(order, Array.from({ length: 100 }, (_, n) => n));
  }
});

test('payload bytes pass through untouched', async () => {
  const channel = unique('live:');
  const sub = await subscribe(await connect('protobuf'), channel);
  const payload = '{"z":12345678901234567890123,"a":1.10,"z":"\\u00e9"}';
  await api('publish', `{"channel":"${channel}","data":${payload}}`);
  assert.equal(new TextDecoder().decode((await event(sub.log, 'publication')).data), payload);
}, { only: ['protobuf'] });

test('tags of a publication arrive', async () => {
  const channel = unique('live:');
  const sub = await subscribe(await connect(variant), channel);
  await api('publish', { channel, data: {}, tags: { kind: 'news', lang: 'de' } });
  assert.deepEqual({ ...(await event(sub.log, 'publication')).tags }, { kind: 'news', lang: 'de' });
});

test('publish without permission gives error 103', async () => {
  const client = await connect(variant);
  await assert.rejects(client.publish(unique('chat:'), encode(variant, {})), { code: 103 });
  await assert.rejects(client.publish(unique('small:'), encode(variant, {})), { code: 103 });
});

test('subscribe without permission, to an unknown namespace, to an over-long name', async () => {
  const client = await connect(variant);
  for (const [channel, code] of [
    [unique('gate:'), 103],
    [unique('nowhere:'), 102],
    [`live:${'x'.repeat(300)}`, 107],
  ]) {
    const sub = newSubscription(client, channel);
    sub.subscribe();
    assert.equal((await event(sub.log, 'unsubscribed')).code, code, channel.slice(0, 20));
  }
  assert.equal(client.state, 'connected');
});

test('a subscription token opens a channel, and its info is seen in presence', async () => {
  const channel = unique('gate:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel, {
    token: token({ sub: client.user, channel, info: { seat: 7 } }, { ttl: 60 }),
  });
  const { clients } = await sub.presence();
  assert.deepEqual(decode(variant, clients[client.id].chanInfo), { seat: 7 });
  await api('publish', { channel, data: { open: true } });
  assert.deepEqual(decode(variant, (await event(sub.log, 'publication')).data), { open: true });
});

test('a subscription token with a wrong signature gives error 103', async () => {
  const channel = unique('gate:');
  const client = await connect(variant);
  const sub = newSubscription(client, channel, {
    token: token({ sub: client.user, channel }, { ttl: 60, key: 'another key' }),
  });
  sub.subscribe();
  assert.equal((await event(sub.log, 'unsubscribed')).code, 103);
});

test("a subscription token for another channel or user closes the connection with 3500", async () => {
  const channel = unique('gate:');
  for (const claims of [{ channel: unique('gate:') }, { channel, sub: 'somebody else' }]) {
    const client = await connect(variant);
    newSubscription(client, channel, { token: token({ sub: client.user, ...claims }, { ttl: 60 }) }).subscribe();
    assert.equal((await event(client.log, 'disconnected')).code, 3500);
  }
});

test('an expired subscription token makes the SDK ask for a new one', async () => {
  const channel = unique('gate:');
  const client = await connect(variant);
  let asked = 0;
  const sub = await subscribe(client, channel, {
    token: token({ sub: client.user, channel }, { ttl: -60 }),
    getToken: async (context) => {
      asked += 1;
      assert.equal(context.channel, channel);
      return token({ sub: client.user, channel }, { ttl: 3600 });
    },
  });
  assert.equal(asked, 1);
  assert.equal(sub.state, 'subscribed');
});

test('a subscription token is refreshed, and the subscription stays', async () => {
  const channel = unique('gate:');
  const client = await connect(variant);
  let asked = 0;
  const sub = await subscribe(client, channel, {
    token: token({ sub: client.user, channel }, { ttl: 2 }),
    getToken: async () => {
      asked += 1;
      return token({ sub: client.user, channel }, { ttl: asked < 2 ? 2 : 3600 });
    },
  });
  await until('the second refresh', () => asked === 2);
  await api('publish', { channel, data: 1 });
  await event(sub.log, 'publication');
  assert.equal(all(sub.log, 'subscribing').length, 1, 'it subscribed again');
});

test('a user-limited channel is open to the users in its name only', async () => {
  const [alice, bob, eve] = [await connect(variant), await connect(variant), await connect(variant)];
  const channel = `${unique('personal:dialog')}#${alice.user},${bob.user}`;
  await subscribe(alice, channel);
  await subscribe(bob, channel);
  const sub = newSubscription(eve, channel);
  sub.subscribe();
  assert.equal((await event(sub.log, 'unsubscribed')).code, 103);
});

test('presence and its figures', async () => {
  const channel = unique('chat:');
  const alice = await connect(variant, { claims: { info: { name: 'Alice' } } });
  const again = await connect(variant, { user: alice.user });
  const bob = await connect(variant);
  const subs = [];
  for (const client of [alice, again, bob]) subs.push(await subscribe(client, channel));
  const { clients } = await subs[2].presence();
  assert.deepEqual(Object.keys(clients).sort(), [alice.id, again.id, bob.id].sort());
  assert.equal(clients[alice.id].user, alice.user);
  assert.deepEqual(decode(variant, clients[alice.id].connInfo), { name: 'Alice' });
  const stats = await subs[0].presenceStats();
  assert.deepEqual([stats.numClients, stats.numUsers], [3, 2]);
  subs[2].unsubscribe();
  await until('two clients', async () => (await subs[0].presenceStats()).numClients === 2);
  await assert.rejects(bob.presence(channel), { code: 103 });
  await assert.rejects(bob.presence('plain'), { code: 108 });
}, { skip: noPresence });

test('join and leave reach the subscribers', async () => {
  const channel = unique('chat:');
  const alice = await connect(variant);
  const sub = await subscribe(alice, channel);
  const bob = await connect(variant);
  await subscribe(bob, channel);
  assert.equal((await event(sub.log, 'join', (e) => e.info.client === bob.id)).info.user, bob.user);
  bob.disconnect();
  assert.equal((await event(sub.log, 'leave', (e) => e.info.client === bob.id)).info.user, bob.user);
});

test('history pages forwards, backwards and from a position', async () => {
  const channel = unique('chat:');
  const sub = await subscribe(await connect(variant), channel);
  await publishMany(channel, 1, 30);
  const numbers = (result) => result.publications.map((p) => decode(variant, p.data).n);
  const range = (from, to) => Array.from({ length: Math.abs(to - from) + 1 }, (_, i) => from + Math.sign(to - from) * i);

  const top = await sub.history();
  assert.deepEqual(top.publications, []);
  const whole = await sub.history({ limit: 1000 });
  assert.deepEqual(numbers(whole), range(1, 30));
  assert.deepEqual([whole.offset, whole.epoch], [top.offset, top.epoch]);

  const collected = [];
  let page = await sub.history({ limit: 7 });
  while (page.publications.length) {
    collected.push(...numbers(page));
    const since = { offset: page.publications.at(-1).offset, epoch: page.epoch };
    page = await sub.history({ limit: 7, since });
  }
  assert.deepEqual(collected, range(1, 30));

  const back = await sub.history({ limit: 5, reverse: true });
  assert.deepEqual(numbers(back), range(30, 26));
  const since = { offset: back.publications.at(-1).offset, epoch: back.epoch };
  assert.deepEqual(numbers(await sub.history({ limit: 5, reverse: true, since })), range(25, 21));
});

test('history keeps no more than history_size', async () => {
  const channel = unique('chat:');
  const sub = await subscribe(await connect(variant), channel);
  await publishMany(channel, 1, 120);
  const { publications } = await sub.history({ limit: 1000 });
  assert.equal(publications.length, 100);
  assert.equal(decode(variant, publications[0].data).n, 21);
});

test('history from another epoch gives error 112', async () => {
  const channel = unique('chat:');
  const sub = await subscribe(await connect(variant), channel);
  await publishMany(channel, 1, 3);
  await assert.rejects(sub.history({ limit: 5, since: { offset: 1, epoch: 'elsewhere' } }), { code: 112 });
});

test('history where there is none gives error 108, without permission 103', async () => {
  const client = await connect(variant);
  await assert.rejects(client.history(unique('live:'), { limit: 1 }), { code: 108 });
  await assert.rejects(client.history(unique('chat:'), { limit: 1 }), { code: 103 });
});

test('unsubscribe by API reaches the SDK, which stays away', async () => {
  const channel = unique('chat:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  await api('unsubscribe', { user: client.user, channel });
  assert.equal((await event(sub.log, 'unsubscribed')).code, 2000);
  await api('publish', { channel, data: 1 });
  await until('nobody present', async () => !(await api('presence_stats', { channel })).num_clients);
  assert.equal(client.state, 'connected');
  assert.deepEqual(sub.values(), []);
});

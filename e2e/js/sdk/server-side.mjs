// Subscriptions that the server makes: from the token's claims and by API.

import assert from 'node:assert/strict';
import { test, until } from '../cases.mjs';
import { all, connect, decode, event } from '../clients.mjs';
import { api, network, noPresence, publishMany, unique } from '../plenum.mjs';
import { variant } from './variant.mjs';

const received = (client, channel) =>
  all(client.log, 'publication').filter((p) => p.channel === channel).map((p) => decode(variant, p.data).n);

test('channels named in the token are subscribed with the connection', async () => {
  const [one, two] = [unique('chat:'), unique('gate:')];
  const client = await connect(variant, { claims: { channels: [one, two] } });
  await event(client.log, 'subscribed', (e) => e.channel === one);
  await event(client.log, 'subscribed', (e) => e.channel === two);
  await publishMany(one, 1, 2);
  await publishMany(two, 7, 1);
  await until('three publications', () => all(client.log, 'publication').length === 3);
  assert.deepEqual([received(client, one), received(client, two)], [[1, 2], [7]]);
});

test('subscriptions with options in the token (subs): info and override', async () => {
  const channel = unique('live:');
  const subs = { [channel]: { info: { role: 'host' }, data: { hello: 1 }, override: { presence: { value: true } } } };
  const client = await connect(variant, { claims: { subs } });
  const { data } = await event(client.log, 'subscribed', (e) => e.channel === channel);
  assert.deepEqual(decode(variant, data), { hello: 1 });
});

test('recovery of server-side subscriptions after a cut, with 2,000 publications missed', async () => {
  const channel = unique('deep:');
  const client = await connect(variant, { claims: { channels: [channel] } });
  await event(client.log, 'subscribed');
  await publishMany(channel, 1, 2);
  await until('two publications', () => received(client, channel).length === 2);
  await network('refuse');
  await network('cut');
  await until('the loss of the connection', () => client.state !== 'connected');
  await publishMany(channel, 3, 2000);
  await network('accept');
  await until('the second subscribed', () => all(client.log, 'subscribed').length === 2, 30);
  assert.equal(all(client.log, 'subscribed')[1].recovered, true);
  await publishMany(channel, 2003, 1);
  await until(
    () => `2003 publications; ${received(client, channel).length} came`,
    () => received(client, channel).length >= 2003,
    30,
  );
  assert.deepEqual(received(client, channel), Array.from({ length: 2003 }, (_, i) => i + 1));
});

test('server-side subscription that missed more than history_size is told so', async () => {
  const channel = unique('small:');
  const client = await connect(variant, { claims: { channels: [channel] } });
  await publishMany(channel, 1, 1);
  await until('one publication', () => received(client, channel).length === 1);
  await network('refuse');
  await network('cut');
  await until('the loss of the connection', () => client.state !== 'connected');
  await publishMany(channel, 2, 11);
  await network('accept');
  await until('the second subscribed', () => all(client.log, 'subscribed').length === 2, 30);
  assert.equal(all(client.log, 'subscribed')[1].recovered, false);
});

test('subscribe and unsubscribe by API', async () => {
  const channel = unique('gate:');
  const client = await connect(variant);
  await api('subscribe', { user: client.user, channel, data: { from: 'api' } });
  const { data } = await event(client.log, 'subscribed', (e) => e.channel === channel);
  assert.deepEqual(decode(variant, data), { from: 'api' });
  await publishMany(channel, 1, 1);
  await event(client.log, 'publication', (e) => e.channel === channel);
  if (!noPresence) {
    const { presence } = await api('presence', { channel });
    assert.deepEqual(Object.keys(presence), [client.id]);
  }
  await api('unsubscribe', { user: client.user, channel });
  await event(client.log, 'unsubscribed', (e) => e.channel === channel);
  await publishMany(channel, 2, 1);
  assert.deepEqual(received(client, channel), [1]);
});

test('subscribe by API from a position brings what follows it', async () => {
  const channel = unique('gate:');
  await publishMany(channel, 1, 10);
  const { publications, epoch } = await api('history', { channel, limit: 4 });
  const client = await connect(variant);
  await api('subscribe', { user: client.user, channel, recover_since: { offset: publications.at(-1).offset, epoch } });
  await until('what follows', () => received(client, channel).length === 6);
  assert.deepEqual(received(client, channel), [5, 6, 7, 8, 9, 10]);
});

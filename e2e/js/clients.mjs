// The released JavaScript SDK in its JSON and its Protobuf build, with everything it reports written down.

import { requireTool, token, proxyWs, unique } from './plenum.mjs';
import { until } from './cases.mjs';

const WebSocket = requireTool('ws');
const builds = {
  json: requireTool('centrifuge'),
  protobuf: requireTool('centrifuge/build/protobuf'),
};
const open = new Set();

/** What the SDK wants as payload in this encoding, for a JSON value. */
export const encode = (variant, value) =>
  variant === 'json' ? value : new TextEncoder().encode(JSON.stringify(value));

/** The JSON value of a payload that the SDK gave. */
export const decode = (variant, data) => (variant === 'json' ? data : JSON.parse(new TextDecoder().decode(data)));

/** Adds every event of `emitter` to `log` as `{event, ...context}`. */
function record(emitter, log, events) {
  for (const event of events) emitter.on(event, (context) => log.push({ event, ...context }));
}

const CLIENT_EVENTS = [
  'connecting', 'connected', 'disconnected', 'message', 'error', 'subscribed', 'subscribing', 'unsubscribed',
  'publication', 'join', 'leave',
];
const SUBSCRIPTION_EVENTS = ['subscribing', 'subscribed', 'unsubscribed', 'publication', 'join', 'leave', 'error'];

/** One event of a log, once it is there. */
export const event = (log, name, condition = () => true, seconds = 15) =>
  until(
    () => `the event "${name}"; seen: ${log.map((e) => e.event + (e.code ?? e.error?.code ?? '')).slice(-30).join(' ')}`,
    () => log.find((entry) => entry.event === name && condition(entry)),
    seconds,
  );

export const all = (log, name) => log.filter((entry) => entry.event === name);

/** A client that is not connected yet; `log` on it holds its events. */
export function newClient(variant, { user = unique('user'), claims = {}, endpoint = proxyWs, ttl = 3600, ...options } = {}) {
  const { Centrifuge } = builds[variant];
  const client = new Centrifuge(endpoint, {
    websocket: WebSocket,
    minReconnectDelay: 20,
    maxReconnectDelay: 200,
    timeout: 10_000,
    token: token({ sub: user, ...claims }, { ttl }),
    ...options,
  });
  client.log = [];
  client.user = user;
  client.variant = variant;
  record(client, client.log, CLIENT_EVENTS);
  open.add(client);
  return client;
}

/** A connected client. */
export async function connect(variant, options) {
  const client = newClient(variant, options);
  client.connect();
  client.id = (await event(client.log, 'connected')).client;
  return client;
}

/** A subscription that is not subscribed yet; `log` holds its events, `values()` its payloads. */
export function newSubscription(client, channel, options = {}) {
  const sub = client.newSubscription(channel, { minResubscribeDelay: 20, maxResubscribeDelay: 200, ...options });
  sub.log = [];
  sub.values = () => all(sub.log, 'publication').map((p) => decode(client.variant, p.data));
  record(sub, sub.log, SUBSCRIPTION_EVENTS);
  return sub;
}

/** A subscription in state subscribed. */
export async function subscribe(client, channel, options) {
  const sub = newSubscription(client, channel, options);
  sub.subscribe();
  await event(sub.log, 'subscribed');
  return sub;
}

/** Ends every client of the case. */
export async function closeAll() {
  for (const client of open) client.disconnect();
  open.clear();
}

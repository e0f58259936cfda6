// The server under test as the suites see it: tokens, the server API, and the proxy's commands.

import { createHmac, randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';

const env = (name) => {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: start this through e2e/serve`);
  return value;
};

/** `require` for the packages that deploy/tools/install put into .tools/. */
export const requireTool = createRequire(`${env('PLENUM_TOOLS')}/node/`);

export const url = env('PLENUM_URL');
export const ws = env('PLENUM_WS');
export const proxyUrl = env('PLENUM_PROXY_URL');
export const proxyWs = env('PLENUM_PROXY_WS');

/** Whether the log outlives a server. */
export const keptLog = env('PLENUM_LOG') === 'nats';
/** Why a case that needs to know of clients at another replica cannot run, or undefined. */
export const noPresence =
  env('PLENUM_PRESENCE') === 'own' ? "presence is each replica's own without Redis" : undefined;

const base64url = (value) => Buffer.from(value).toString('base64url');

/** An HS256 token with these claims; `ttl` in seconds sets `exp`. */
export function token(claims, { ttl, key = env('PLENUM_TOKEN_KEY') } = {}) {
  const body = { ...claims };
  if (ttl !== undefined) body.exp = Math.floor(Date.now() / 1000) + ttl;
  const signed = `${base64url('{"alg":"HS256","typ":"JWT"}')}.${base64url(JSON.stringify(body))}`;
  return `${signed}.${createHmac('sha256', key).update(signed).digest('base64url')}`;
}

let names = 0;
/** A name that no other case uses. */
export const unique = (prefix) => `${prefix}${randomBytes(4).toString('hex')}${(names += 1)}`;

/** Calls the server API with `body`, an object or JSON text, and gives the result or throws the API's error. */
export async function api(method, body = {}) {
  const response = await fetch(`${url}/api/${method}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-api-key': env('PLENUM_API_KEY') },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`api ${method}: HTTP ${response.status} ${await response.text()}`);
  const reply = await response.json();
  if (reply.error) throw Object.assign(new Error(`api ${method}: ${reply.error.message}`), reply.error);
  return reply.result;
}

/** Publishes `{n: first}` … `{n: first + count - 1}` in order, many in one request. */
export async function publishMany(channel, first, count, extra = {}) {
  for (let at = first; at < first + count; at += 500) {
    const size = Math.min(500, first + count - at);
    const commands = Array.from({ length: size }, (_, i) => ({ publish: { channel, data: { n: at + i, ...extra } } }));
    const { replies } = await batch(commands);
    const failed = replies.find((reply) => reply.error || reply.publish?.error);
    if (failed) throw new Error(`publish failed: ${JSON.stringify(failed)}`);
  }
}

async function batch(commands) {
  const response = await fetch(`${url}/api/batch`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-api-key': env('PLENUM_API_KEY') },
    body: JSON.stringify({ commands }),
  });
  if (!response.ok) throw new Error(`api batch: HTTP ${response.status} ${await response.text()}`);
  const reply = await response.json();
  return reply.result ?? reply;
}

/** A command to the proxy of e2e/serve, for example `cut?after=100`. */
export async function network(command) {
  const response = await fetch(`${env('PLENUM_CONTROL')}/${command}`, { method: 'POST' });
  if (!response.ok) throw new Error(`proxy: ${command}: HTTP ${response.status}`);
  return response.json();
}

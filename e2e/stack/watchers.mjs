// Clients of the JavaScript SDK that stay subscribed through one address and keep what they are told: `node watchers.mjs SETTINGS`.
//
// SETTINGS is JSON: port (nginx), channels (one JSON and one Protobuf client each). Each line on stdin is answered with a line of
// JSON, what every client saw so far.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const settings = JSON.parse(process.argv[2]);
const requireTool = createRequire(`${process.env.PLENUM_TOOLS}/node/`);
const websocket = requireTool('ws');
const builds = [requireTool('centrifuge'), requireTool('centrifuge/build/protobuf')];

const watchers = settings.channels.flatMap((channel) => builds.map(({ Centrifuge }, number) => {
  const seen = { channel, state: '', subscribed: [], publications: [] };
  const client = new Centrifuge(`ws://127.0.0.1:${settings.port}/connection/websocket`, { websocket, maxReconnectDelay: 1000 });
  const sub = client.newSubscription(channel, { positioned: true, recoverable: true });
  sub.on('state', ({ newState }) => (seen.state = newState));
  sub.on('subscribed', ({ wasRecovering, recovered, streamPosition }) =>
    seen.subscribed.push({ wasRecovering, recovered, ...streamPosition }));
  sub.on('publication', ({ data }) => seen.publications.push(number ? JSON.parse(new TextDecoder().decode(data)) : data));
  sub.subscribe();
  client.connect();
  return seen;
}));

for await (const _ of createInterface({ input: process.stdin })) console.log(JSON.stringify(watchers));
process.exit(0);

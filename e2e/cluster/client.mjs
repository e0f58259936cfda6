// One client of the JavaScript SDK that stays while releases come and go: `node client.mjs URL TOKEN CHANNEL`. Each line on stdin is
// a command (JSON): {"publish": [data, …]} or {"history": true}; each line on stdout tells what happened.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const requireTool = createRequire(`${process.env.PLENUM_TOOLS}/node/`);
const { Centrifuge } = requireTool('centrifuge');
const [url, token, channel] = process.argv.slice(2);
const say = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));

const client = new Centrifuge(url, { websocket: requireTool('ws'), token, maxReconnectDelay: 2000 });
const subscription = client.newSubscription(channel, { recoverable: true });
client.on('connecting', ({ code, reason }) => say('connecting', { code, reason }));
subscription.on('subscribed', ({ wasRecovering, recovered, streamPosition }) => {
  say('subscribed', { wasRecovering, recovered, ...streamPosition });
});
subscription.on('error', ({ error }) => say('error', { error }));
subscription.subscribe();
client.connect();

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    if (command.publish) {
      for (const data of command.publish) await subscription.publish(data);
      say('published');
    } else {
      const { publications, epoch } = await subscription.history({ limit: 1000 });
      say('history', { epoch, data: publications.map(({ data }) => data) });
    }
  } catch (error) {
    say('failed', { error });
  }
}
client.disconnect();

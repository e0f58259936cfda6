// A client id that is taken over while the replica of its connection stands still. The clients here have no SDK, so that the old
// socket stays open and goes on writing whatever becomes of its session.

const TICK_MS = 10; // the observer publishes, for frames to the old socket
const WRITE_MS = 10; // the old client publishes
const PATIENCE_MS = 30_000;
const AFTERWARDS_MS = 1500; // after the old socket was closed: what its replica had accepted may still be on its way

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Raw {
  seen = []; // data of publications, and when they came
  waiting = new Map();
  last = 0;

  constructor(WebSocket, port) {
    this.socket = new WebSocket(`ws://127.0.0.1:${port}/connection/websocket`);
    this.opened = new Promise((resolve, reject) => {
      this.socket.on('open', resolve);
      this.socket.on('error', reject);
    });
    this.opened.catch(() => {});
    this.socket.on('message', (bytes) => String(bytes).split('\n').filter(Boolean).forEach((line) => this.take(JSON.parse(line))));
    this.socket.on('close', (code) => {
      this.code = code;
      this.closedAt = Date.now();
      for (const resolve of this.waiting.values()) resolve({ closed: code });
    });
  }

  take(message) {
    if (!Object.keys(message).length) return this.socket.send('{}');
    if (message.push?.pub) {
      this.seen.push({ data: message.push.pub.data, at: Date.now() });
      return this.seen;
    }
    return this.waiting.get(message.id)?.(message);
  }

  /** The reply, or `{closed: code}`. */
  ask(command) {
    const id = (this.last += 1);
    const reply = new Promise((resolve) => this.waiting.set(id, resolve));
    this.socket.send(JSON.stringify({ id, ...command }));
    return reply.finally(() => this.waiting.delete(id));
  }

  async connect(token, data) {
    await this.opened;
    const reply = await this.ask({ connect: { token, data } });
    if (!reply.connect) throw new Error(`no connection: ${JSON.stringify(reply)}`);
    return reply.connect;
  }

  /** On a busy machine it may take more than one attempt. */
  async subscribe(channel) {
    const end = Date.now() + PATIENCE_MS;
    for (;;) {
      const reply = await this.ask({ subscribe: { channel } });
      if (reply.subscribe) return;
      if (!reply.error?.temporary || Date.now() > end) throw new Error(`no subscription: ${JSON.stringify(reply)}`);
      await pause(100);
    }
  }
}

const latest = (seen) => seen.at(-1)?.at ?? 0;

/** What a connect with this token comes to at each port: a close code, "connected", or an error as text. */
export async function answers(WebSocket, ports, token) {
  const answer = async (port) => {
    const raw = new Raw(WebSocket, port);
    await raw.opened;
    const reply = await raw.ask({ connect: { token } });
    raw.socket.terminate();
    return reply.closed ?? (reply.connect ? 'connected' : JSON.stringify(reply));
  };
  return Promise.all(ports.map(answer));
}

/** The commands; one takeover at a time. */
export function takeovers({ WebSocket, endpoints, token, until }) {
  let turn;

  return {
    /** A client at the replica `home`, and an observer at `other` whose publications it gets. */
    async hold({ home, other, channel, user }) {
      const [old, observer] = [home, other].map((replica) => new Raw(WebSocket, endpoints[replica]));
      turn = { old, observer, channel, user, sent: 0, acknowledged: 0, ticks: 0 };
      turn.reply = await old.connect(token(user));
      await observer.connect(token('observer'));
      await Promise.all([old.subscribe(channel), observer.subscribe(channel)]);
      turn.ticking = setInterval(() => {
        turn.ticks += 1;
        observer.ask({ publish: { channel, data: { tick: turn.ticks } } });
      }, TICK_MS);
      await until(() => 'the client gets publications', () => old.seen.length > 5, 10_000);
      return { client: turn.reply.client };
    },

    /** Its client id is taken over at another replica; then the old client begins to publish. */
    async take({ home }) {
      const { old, channel, user, reply } = turn;
      const end = Date.now() + PATIENCE_MS;
      let client;
      for (;;) {
        turn.heir = new Raw(WebSocket, endpoints[home]);
        ({ client } = await turn.heir.connect(token(user), reply.data));
        if (client === reply.client || Date.now() > end) break;
        // The ledger did not answer; the token is not used up by that.
        turn.heir.socket.terminate();
        await pause(500);
      }
      await turn.heir.subscribe(channel);
      turn.writing = setInterval(() => {
        turn.sent += 1;
        old.ask({ publish: { channel, data: { old: turn.sent } } }).then((answer) => {
          if (answer.publish) turn.acknowledged += 1;
        });
      }, WRITE_MS);
      return { client, at: Date.now() };
    },

    /** Waits until the old socket was closed; times are of the clock, in ms. */
    async lasted({ seconds }) {
      const { old, observer, heir, ticking, writing } = turn;
      const end = () => `the old socket is open, ${old.seen.length} publications came on it, the last at ${latest(old.seen)}`;
      try {
        await until(end, () => old.closedAt, seconds * 1000);
        clearInterval(writing);
        const mark = turn.ticks;
        await until(() => 'nothing of the old client is under way', () => Date.now() > old.closedAt + AFTERWARDS_MS, 60_000);
        await until(() => 'the heir gets publications', () => heir.closedAt || heir.seen.some(({ data }) => data.tick > mark), 30_000);
        const accepted = observer.seen.filter(({ data }) => data.old);
        const { code, closedAt } = old;
        const { sent, acknowledged } = turn;
        const heirs = heir.closedAt ? `closed with ${heir.code}` : 'open';
        const [firstAt, acceptedAt] = [accepted[0]?.at ?? 0, latest(accepted)];
        return { code, closedAt, frameAt: latest(old.seen), firstAt, acceptedAt, accepted: accepted.length, sent, acknowledged, heir: heirs };
      } finally {
        clearInterval(ticking);
        clearInterval(writing);
        for (const raw of [old, observer, heir]) raw.socket.terminate();
      }
    },
  };
}

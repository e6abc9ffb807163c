// Jobs from node-postgres: all there is to know is a few functions of schema pgq.
//
//   node index.mjs enqueue '{"to": "ann@example.org"}'
//   node index.mjs work             until SIGTERM or Ctrl-C; with --drain until no job is ready
//
// The database is that of PGHOST, PGDATABASE, PGUSER and so on. If it goes away, a worker ends, for its supervisor to
// start it again; what it held comes back when its lease expires.

import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";

const QUEUE = "node";
const NAME = `node ${process.pid}`;
const BEAT = Number(process.env.BEAT ?? 15_000); // ms, less than half of the queue's lease
const LOOK_AGAIN = 10_000; // ms; a watch counts for a minute

// What runs for each job: its result is kept, what it throws rejects the attempt.
async function handle({ payload }) {
  if (!payload.to) throw new Error("there is no address");
  await sleep(payload.ms ?? 20);
  return { sent_to: payload.to };
}

async function enqueue(client, payload) {
  const { rows } = await client.query("SELECT pgq.enqueue($1, $2) AS id", [QUEUE, payload]);
  return rows[0].id;
}

class Worker {
  #stopping = false;
  #wake = () => {};

  // pool: for everything short; listener: a connection of its own, on which the database wakes us.
  constructor(pool, listener) {
    this.pool = pool;
    this.listener = listener;
  }

  stop() {
    this.#stopping = true;
    this.#wake();
  }

  async run({ drain = false } = {}) {
    this.listener.on("notification", () => this.#wake());
    await this.listener.query("LISTEN pgq");
    const maintaining = setInterval(() => this.pool.query("SELECT pgq.maintain()").catch(console.error), 1000);
    try {
      while (!this.#stopping) {
        if (await this.#claimAndRun()) continue;
        if (drain) break;
        await this.#sleep();
      }
    } finally {
      clearInterval(maintaining);
    }
  }

  async #claimAndRun() {
    const { rows: jobs } = await this.pool.query("SELECT * FROM pgq.claim($1, 10, worker => $2)", [QUEUE, NAME]);
    if (jobs.length === 0) return 0;
    const leases = [...new Set(jobs.map((job) => job.lease))];
    const beat = setInterval(() => this.pool.query("SELECT pgq.extend_many($1)", [leases]).catch(console.error), BEAT);
    await Promise.all(jobs.map((job) => this.#run(job)));
    clearInterval(beat);
    return jobs.length;
  }

  async #run(job) {
    let result, failure;
    try {
      result = JSON.stringify(await handle(job));
    } catch (error) {
      failure = error;
    }
    try {
      if (failure === undefined) {
        await this.pool.query("SELECT pgq.ack($1, $2, $3)", [job.id, job.lease, result]);
        console.log(`job ${job.id} is done`);
      } else {
        const what = [job.id, job.lease, String(failure?.stack ?? failure)];
        const { rows } = await this.pool.query("SELECT pgq.reject($1, $2, $3)", what);
        console.log(`job ${job.id} failed in attempt ${job.attempt}: ${rows[0].reject}`);
      }
    } catch (error) {
      if (error.code !== "PQ001") throw error;
      console.error(`job ${job.id} is somebody else's by now`); // its lease had expired
    }
  }

  // Watch, and claim once more: what came before the watch was not notified. Then sleep until there is news.
  async #sleep() {
    const nap = new AbortController();
    this.#wake = () => nap.abort();
    const { rows } = await this.listener.query("SELECT pgq.watch($1) AS due", [[QUEUE]]);
    if (!(await this.#claimAndRun()) && !this.#stopping) {
      const due = rows[0].due === null ? LOOK_AGAIN : rows[0].due - Date.now();
      await sleep(Math.max(20, Math.min(LOOK_AGAIN, due)), null, { signal: nap.signal }).catch(() => {});
    }
    await this.listener.query("SELECT pgq.unwatch($1)", [[QUEUE]]);
  }
}

const [action, argument] = process.argv.slice(2);
const pool = new pg.Pool({ max: 12 });
if (action === "enqueue") {
  console.log(`enqueued job ${await enqueue(pool, JSON.parse(argument))}`);
} else {
  const listener = new pg.Client();
  await listener.connect();
  const worker = new Worker(pool, listener);
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => worker.stop());
  await worker.run({ drain: argument === "--drain" });
  await listener.end();
}
await pool.end();

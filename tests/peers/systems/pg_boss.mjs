// pg-boss's program.

import { PgBoss } from 'pg-boss'
import { DSN, OPTIONS, main } from './kit.mjs'

const QUEUE = 'peers'
const AT_ONCE = 24 // of a batch, as many as graphile-worker runs
// Only the crash needs to know soon that a worker is silent: each look costs something.
const CRASH = OPTIONS.silence ? { superviseIntervalSeconds: 1, monitorIntervalSeconds: 1 } : {}

async function start (options) {
  const boss = new PgBoss({ connectionString: DSN, useListenNotify: true, ...options })
  boss.on('error', (error) => console.error(error))
  await boss.start()
  return boss
}

async function prepare () {
  const boss = await start({})
  await boss.createQueue(QUEUE, { notify: true, partition: true, heartbeatSeconds: OPTIONS.silence, retryLimit: 5 })
  await boss.stop()
}

async function open () {
  const boss = await start({ supervise: false, schedule: false })
  return {
    one: (payload) => boss.send(QUEUE, payload),
    many (payloads, delay) {
      const startAfter = delay || undefined
      return boss.insert(QUEUE, payloads.map((data) => ({ data, startAfter })), { returnId: false })
    },
    close: () => boss.stop({ graceful: false })
  }
}

async function work (tally) {
  const boss = await start(CRASH)
  const run = (job) => {
    tally.note(job.data)
    return tally.rest()
  }
  const options = {
    batchSize: 500,
    burstWhenBatchFull: true,
    pollingIntervalSeconds: 1,
    notifyPollingIntervalSeconds: 1
  }
  await boss.work(QUEUE, options, async (jobs) => {
    for (let n = 0; n < jobs.length; n += AT_ONCE) {
      await Promise.all(jobs.slice(n, n + AT_ONCE).map(run))
    }
  })
  tally.start()
}

await main({ prepare, open, work })

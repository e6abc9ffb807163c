// graphile-worker's program.

import { makeWorkerUtils, run } from 'graphile-worker'
import { DSN, main } from './kit.mjs'

const preset = {
  worker: {
    connectionString: DSN,
    concurrentJobs: 24,
    maxPoolSize: 25,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0
  }
}

async function prepare () {
  const utils = await makeWorkerUtils({ preset })
  await utils.migrate()
  await utils.release()
}

async function open () {
  const utils = await makeWorkerUtils({ preset })
  return {
    one: (payload) => utils.addJob('noop', payload),
    many (payloads, delay) {
      const runAt = delay ? new Date(Date.now() + delay * 1000) : undefined
      return utils.addJobs(payloads.map((payload) => ({ identifier: 'noop', payload, runAt })))
    },
    close: () => utils.release()
  }
}

async function work (tally) {
  const taskList = {
    async noop (payload) {
      tally.note(payload)
      await tally.rest()
    }
  }
  const runner = await run({ preset, taskList })
  tally.start()
  await runner.promise
}

await main({ prepare, open, work })

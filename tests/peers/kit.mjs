// What the programs of the Node.js systems share; kit.py in JavaScript.

import { openSync, writeSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'

export const DSN = process.env.PEER_DSN
export const OPTIONS = JSON.parse(process.env.PEER_OPTIONS ?? '{}')

const TEXT = 'somebody@example.org, welcome, ' + 'x'.repeat(30)
const TICK_MS = 20
const MOST_AT_ONCE = 1000
const REPORT_EVERY_MS = 50

export const now = () => performance.timeOrigin + performance.now()
const tell = (figures) => process.stdout.write(JSON.stringify(figures) + '\n')
const payloads = (start, count) => Array.from({ length: count }, (_, i) => ({ n: start + i, text: TEXT }))

// Counts the runs of the handler, and tells the harness a few times a second.
export class Tally {
  #runs = 0
  #waits = []
  #first = null
  #record = OPTIONS.record ? openSync(OPTIONS.record, 'a') : null

  // A handler has begun.
  note (payload) {
    if (payload.sent !== undefined) this.#waits.push(now() - payload.sent)
    if (OPTIONS.numbers && this.#record !== null) writeSync(this.#record, `${payload.n}\n`)
    this.#first ??= now() / 1000
    this.#runs++
  }

  rest () {
    if (OPTIONS.nap) return sleep(OPTIONS.nap * 1000)
  }

  #report () {
    if (this.#record !== null && !OPTIONS.numbers && this.#waits.length) {
      writeSync(this.#record, new Uint8Array(Float64Array.from(this.#waits).buffer))
      this.#waits = []
    }
    tell({ runs: this.#runs, first: this.#first, at: now() / 1000 })
  }

  start () {
    this.#report()
    setInterval(() => this.#report(), REPORT_EVERY_MS)
  }
}

const PLANS = {
  async flood (producer) {
    const { batch, jobs = Infinity, seconds = Infinity, delay = 0 } = OPTIONS
    const began = now()
    let done = 0
    while (done < jobs && now() - began < seconds * 1000) {
      if (batch === 1) {
        await producer.one({ n: done, text: TEXT })
        done++
      } else {
        const chunk = payloads(done, Math.min(batch, jobs - done))
        await producer.many(chunk, delay)
        done += chunk.length
      }
    }
    return [done, 0]
  },

  async pace (producer) {
    const { rate, seconds } = OPTIONS
    const total = Math.floor(rate * seconds)
    const began = now()
    let sent = 0
    let late = 0
    while (sent < total) {
      const passed = now() - began
      const due = Math.min(Math.floor(passed * rate / 1000) + 1, total)
      if (due <= sent) {
        await sleep(TICK_MS)
        continue
      }
      late = Math.max(late, passed - sent * 1000 / rate)
      const chunk = payloads(sent, Math.min(due - sent, MOST_AT_ONCE))
      for (const payload of chunk) payload.sent = began + payload.n * 1000 / rate
      await producer.many(chunk, 0)
      sent += chunk.length
      if (sent >= due) await sleep(TICK_MS)
    }
    return [sent, late]
  },

  async sparse (producer) {
    for (let n = 0; n < OPTIONS.jobs; n++) {
      await sleep(30 + Math.random() * 40)
      await producer.one({ n, text: TEXT, sent: now() })
    }
    return [OPTIONS.jobs, 0]
  },

  async feed (producer) {
    let done = 0
    for await (const line of createInterface({ input: process.stdin })) {
      const end = done + Number(line)
      while (done < end) {
        const chunk = payloads(done, Math.min(MOST_AT_ONCE, end - done))
        await producer.many(chunk, 0)
        done += chunk.length
      }
    }
    return [done, 0]
  }
}

// The command line of a peer's program: prepare, enqueue, work.
export async function main ({ prepare, open, work }) {
  const verb = process.argv[2]
  if (verb === 'prepare') {
    await prepare()
  } else if (verb === 'enqueue') {
    const producer = await open()
    tell({ ready: true })
    const began = now()
    const before = process.cpuUsage()
    const [jobs, late] = await PLANS[OPTIONS.plan](producer)
    const { user, system } = process.cpuUsage(before)
    tell({ jobs, seconds: (now() - began) / 1000, late_ms: late, cpu: (user + system) / 1e6 })
    await producer.close()
  } else if (verb === 'work') {
    await work(new Tally())
    return // until it is ended
  } else {
    throw new Error(`no verb ${verb}`)
  }
  process.exit(0)
}

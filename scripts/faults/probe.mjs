// Loaded into a process under test with --import: on SIGUSR2 it tells its parent what the process holds.
import { readdirSync } from 'node:fs'

const count = (names) =>
  names.reduce((counts, name) => ({ ...counts, [name]: (counts[name] ?? 0) + 1 }), {})

process.on('SIGUSR2', () => {
  globalThis.gc?.()
  const { rss, heapUsed } = process.memoryUsage()
  process.send?.({
    rss,
    heap: heapUsed,
    descriptors: readdirSync('/proc/self/fd').length,
    listeners: Object.fromEntries(
      process.eventNames().map((name) => [String(name), process.listenerCount(name)]),
    ),
    resources: count(process.getActiveResourcesInfo()),
  })
})

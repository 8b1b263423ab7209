import t from 'tap'
import { connect } from '../../shared/db.ts'
import { testDb } from '../../shared/test/db.ts'
import { until } from '../../shared/test/until.ts'
import type { Session } from '../../shared/wa-sessions.ts'
import { Random } from '../faults/random.ts'
import { AgentClient } from './client.ts'
import { fault, Listener, startOf, writeEvents, written } from './listeners.ts'
import type { Channel } from './listeners.ts'
import { freePort, givenSettings, startProcess } from './processes.ts'

const seed = 7

void t.test(
  'three processes, clients that come and go: each is told everything of its workspace, once, in order',
  async (t) => {
    const { url, sql } = await testDb(t)
    const env = await givenSettings(t, { DATABASE_URL: url })
    const ports = [await freePort(), await freePort(), await freePort()]
    const processes = []
    for (const port of ports) {
      processes.push(await startProcess(t, 'api/server.js', { ...env, PORT: String(port) }))
    }
    const bases = ports.map((port) => `http://127.0.0.1:${port}`)
    const channels: Channel[] = []
    for (let index = 0; index < 4; index++) {
      const agent = new AgentClient(bases[index % bases.length]!)
      const { accessToken, user } = await agent.register()
      const body = { name: 'main', start: false }
      const session = await agent.call<Session>('POST', '/api/whatsapp/sessions', body)
      channels.push({
        workspaceId: user.workspaceId,
        sessionId: session.body.id,
        token: accessToken,
      })
    }
    const starts = await Promise.all(channels.map((channel) => startOf(sql, channel)))
    const listeners = Array.from({ length: 24 }, (_, index) => {
      const which = index % channels.length
      return new Listener(
        channels[which]!,
        starts[which]!,
        bases,
        new Random(seed, `client ${index}`),
      )
    })
    const over = new AbortController()
    const listening = Promise.all(listeners.map((listener) => listener.listen(over.signal, 800)))
    const writers = connect(url, { applicationName: 'writers', max: 8 })
    t.teardown(() => writers.close())
    const writing = writeEvents(writers, channels, {
      total: 600,
      writers: 8,
      chance: new Random(seed, 'writers'),
    })
    await processes[0]!.end('SIGKILL')
    t.same(await processes[1]!.end('SIGTERM'), { code: 0, signal: null }, 'with its streams open')
    await startProcess(t, 'api/server.js', { ...env, PORT: String(ports[0]) })
    await writing
    const expected = await Promise.all(
      channels.map((channel, index) => written(sql, channel, starts[index]!)),
    )
    await until('everybody has everything', () =>
      listeners.every(
        ({ told }, index) => told.length >= expected[index % channels.length]!.length,
      ),
    )
    over.abort()
    await listening
    for (const [index, listener] of listeners.entries()) {
      t.equal(fault(listener, expected[index % channels.length]!), undefined, `client ${index}`)
    }
    const connections = listeners.reduce((sum, listener) => sum + listener.connections, 0)
    t.ok(connections > listeners.length * 2, `${connections} connections`)
  },
)

import { once } from 'node:events'
import { connect } from 'node:net'
import type { AddressInfo } from 'node:net'
import Fastify from 'fastify'
import t from 'tap'
import { guardUploads, limitBodies } from '../uploading.ts'

const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length

for (const guard of ['limitBodies', 'guardUploads'] as const) {
  void t.test(`${guard}: who has gone before it begins leaves no timer`, async (t) => {
    const app = Fastify({ forceCloseConnections: true })
    t.teardown(() => app.close())
    app.addHook('onRequest', async ({ raw }) => {
      await new Promise((resolve) => raw.socket.once('close', resolve))
    })
    if (guard === 'limitBodies') limitBodies(app, 60_000)
    else guardUploads(app, { everyMs: 60_000, bytes: 1 })
    const passed = new Promise<number>((resolve) => {
      app.addHook('onRequest', async () => resolve(timers()))
    })
    app.post('/', async () => 'never')
    await app.listen({ port: 0, host: '127.0.0.1' })
    const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1')
    await once(socket, 'connect')
    const before = timers()
    socket.write(
      'POST / HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\nabc',
    )
    await once(app.server, 'request')
    socket.destroy()
    t.equal(await passed, before)
  })
}

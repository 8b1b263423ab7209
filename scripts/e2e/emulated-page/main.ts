/** The emulated WhatsApp as a process of its own: `--port` for browsers, `--control-port` for curl. */
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { parseArgs } from 'node:util'
import { createControl } from './control.ts'
import { startEmulatedWhatsApp } from './server.ts'

const { values } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    'control-port': { type: 'string', default: '0' },
    'everyone-registered': { type: 'boolean', default: false },
    'qr-interval-ms': { type: 'string', default: '20000' },
  },
})

const whatsapp = await startEmulatedWhatsApp({
  port: Number(values.port),
  everyoneRegistered: values['everyone-registered'],
  qrIntervalMs: Number(values['qr-interval-ms']),
})
const control = createControl(whatsapp).listen(Number(values['control-port']), '127.0.0.1')
await once(control, 'listening')
const { port } = control.address() as AddressInfo

console.log(`browser arguments: ${whatsapp.browserArgs.map((arg) => `'${arg}'`).join(' ')}`)
console.log(`control: http://127.0.0.1:${port}/control/<verb>`)

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    control.close()
    void whatsapp.close()
  })
}

// Loaded into a worker with --import: what its simulated WhatsApp transmits is written down where it outlives the process, one id a line.
import { appendFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const { FAULTS_PRODUCT, FAULTS_WIRE } = process.env
const file = join(FAULTS_PRODUCT, 'dist', 'wa-worker', 'engine', 'simulator.js')
const { SimulatorEngine } = await import(pathToFileURL(file).href)
const { transmissions } = SimulatorEngine.prototype
// The engine asks this of itself once at each transmission, and nobody else does in a worker.
SimulatorEngine.prototype.transmissions = function (keyId) {
  appendFileSync(FAULTS_WIRE, `${keyId}\n`)
  return transmissions.call(this, keyId)
}

// A process that keeps logins with the vault of a built product: vault-task.mjs '{"root", "url", "folder"}'. What to do comes over IPC, one task
// at a time, and is answered there. A task may name a step to stop at for ever: whoever asked for that kills this process there.
import { Buffer } from 'node:buffer'
import { join } from 'node:path'
import { PassThrough, Transform } from 'node:stream'
import { pathToFileURL } from 'node:url'

const { root, url, folder } = JSON.parse(process.argv[2])
const load = (file) => import(pathToFileURL(join(root, 'dist', file)).href)
const { connect } = await load('shared/db.js')
const { KeyRing } = await load('shared/key-ring.js')
const { createLogger } = await load('shared/logger.js')
const { LocalObjectStore } = await load('shared/object-store-local.js')
const { Vault } = await load('wa-worker/vault.js')

const database = connect(url, { applicationName: 'vault-task', max: 4 })
const objects = new LocalObjectStore(join(folder, 'objects'))
const keys = KeyRing.parse(Buffer.alloc(32, 'fault suite').toString('base64'))
const log = createLogger('vault-task', { level: 'fatal', stdout: false })

const stopHere = () => {
  process.send({ stopped: true })
  return new Promise(() => {})
}

/** Lets half of the first piece through. */
function half(source) {
  const part = new PassThrough()
  source.once('data', (chunk) => {
    part.write(chunk.subarray(0, chunk.length >> 1))
    void stopHere()
  })
  return part
}

/** Changes one bit, `at` bytes from the beginning. */
function altered(source, at) {
  let passed = 0
  return source.pipe(
    new Transform({
      transform(chunk, _, done) {
        if (at >= passed && at < passed + chunk.length) chunk[at - passed] ^= 1
        passed += chunk.length
        done(null, chunk)
      },
    }),
  )
}

function vaultThat({ step, alterAt }) {
  let transactions = 0
  const sql = Object.assign((...args) => database(...args), {
    // Of a snapshot: the first notes the upload, the second makes it the current one.
    async begin(work) {
      const flips = (transactions += 1) === 2
      if (step === 'before the flip' && flips) await stopHere()
      const result = await database.begin(async (tx) => {
        const done = await work(tx)
        if (step === 'in the flip' && flips) await stopHere()
        return done
      })
      if (step === 'after the flip' && flips) await stopHere()
      return result
    },
  })
  const store = {
    ensureBucket: (bucket) => objects.ensureBucket(bucket),
    async put(bucket, key, source, options) {
      if (step === 'before the upload') await stopHere()
      let body = source
      if (step === 'in the upload') body = half(source)
      if (alterAt !== undefined) body = altered(source, alterAt)
      await objects.put(bucket, key, body, options)
      if (step === 'after the upload') await stopHere()
    },
    async get(bucket, key) {
      const source = await objects.get(bucket, key)
      return step === 'in a restore' ? half(source) : source
    },
    remove: (bucket, names) => objects.remove(bucket, names),
  }
  return new Vault({ sql, store, keys, log, attempts: 1 })
}

process.on('message', (task) => {
  const { what, session, profile } = task
  const vault = vaultThat(task)
  const work =
    what === 'take'
      ? vault.take(session, profile, { reason: 'PERIODIC' })
      : vault.restore(session, profile)
  work.then(
    (result) => process.send({ result }),
    (error) => process.send({ error: String(error) }),
  )
})
process.once('disconnect', () => process.exit())
process.send('ready')

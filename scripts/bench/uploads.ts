/** npm run bench:uploads: twenty uploads of 50 MB at the same time must not cost the API 100 MB of memory. */
import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { request } from 'node:http'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { root } from '../../shared/root.ts'

const uploads = 20
const size = 50 * 1_048_576
const allowed = 100 * 1_048_576

const dir = await mkdtemp(join(tmpdir(), 'awfar-bench-'))
const port = await freePort()
const api = fork(join(root, 'dist/api/server.js'), {
  env: {
    ...process.env,
    DATA_DIR: dir,
    LOG_DIR: join(dir, 'logs'),
    LOG_LEVEL: 'warn',
    PORT: String(port),
    HOST: '127.0.0.1',
    JWT_SECRET: randomBytes(32).toString('hex'),
    RATE_LIMIT_UPLOADS: 'off',
  },
  stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
})
try {
  await new Promise((resolve, reject) => {
    api.once('message', resolve)
    api.once('exit', () => reject(new Error('the API did not start')))
  })
  const token = await register()
  const clip = await readFile(join(root, 'shared/test/fixtures/media/clip.mp4'))
  await upload(token, clip, clip.length + 100_000, 0)
  const before = await rss()
  let peak = before
  const watch = setInterval(() => void rss().then((now) => (peak = Math.max(peak, now))), 50)
  const began = Date.now()
  const answers = await Promise.all(
    Array.from({ length: uploads }, (_, i) => upload(token, clip, size, i + 1)),
  )
  clearInterval(watch)
  const ok = answers.filter((status) => status === 201).length
  const temp = await readdir(join(dir, 'tmp/media')).catch(() => [])
  const megabytes = (bytes: number) => Math.round(bytes / 1_048_576)
  console.log(
    `${ok} of ${uploads} uploads of ${megabytes(size)} MB in ${Date.now() - began} ms; RSS ${megabytes(before)} MB, at most ${megabytes(peak)} MB (+${megabytes(peak - before)} MB); ${temp.length} temporary files left`,
  )
  if (ok !== uploads || peak - before > allowed || temp.length > 0) process.exitCode = 1
} finally {
  const ended = new Promise((resolve) => api.once('exit', resolve))
  api.kill('SIGTERM')
  await ended
  await rm(dir, { recursive: true, force: true })
}

async function rss(): Promise<number> {
  const status = await readFile(`/proc/${api.pid}/status`, 'utf8').catch(() => '')
  return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0) * 1_024
}

async function register(): Promise<string> {
  const answer = await fetch(`http://127.0.0.1:${port}/api/auth/register`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      email: 'bench@example.com',
      password: randomBytes(12).toString('hex'),
      fullName: 'Bench',
    }),
  })
  return ((await answer.json()) as { accessToken: string }).accessToken
}

/** A video with a box of nothing at its end, another one each time. */
function upload(token: string, clip: Buffer, length: number, seed: number): Promise<number> {
  const head = Buffer.from(
    '--x\r\ncontent-disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n',
  )
  const box = Buffer.alloc(16)
  box.writeUInt32BE(length - clip.length)
  box.write('free', 4)
  box.writeUInt32BE(seed, 8)
  const tail = Buffer.from('\r\n--x--\r\n')
  return new Promise((resolve, reject) => {
    const call = request(
      {
        port,
        host: '127.0.0.1',
        path: '/api/upload/media',
        method: 'POST',
        headers: {
          authorization: `Bearer ${token}`,
          'content-type': 'multipart/form-data; boundary=x',
          'content-length': head.length + length + tail.length,
        },
      },
      (answer) => {
        answer.resume()
        answer.once('end', () => resolve(answer.statusCode!))
      },
    )
    call.once('error', reject)
    call.write(head)
    call.write(clip)
    call.write(box)
    const zeros = Buffer.alloc(65_536)
    let left = length - clip.length - box.length
    const go = () => {
      while (left > 0) {
        const piece = zeros.subarray(0, Math.min(left, zeros.length))
        left -= piece.length
        if (!call.write(piece)) return void call.once('drain', go)
      }
      call.end(tail)
    }
    go()
  })
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}

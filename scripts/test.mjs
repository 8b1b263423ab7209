// npm test [-- tap arguments]: lint, types, then every test; ends with what failed and the line "N passed, N failed".
import { spawn } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { inspect } from 'node:util'
import { Parser } from 'tap-parser'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const bin = (name) => join(root, 'node_modules', '.bin', name)
let running = []

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    for (const child of running) child.kill(signal)
    process.exitCode = 1
  })
}

const buildInfo = join('node_modules', '.cache', 'types.tsbuildinfo')
// All three only read, and the two cores are busy.
const checks = await Promise.all([
  check('lint', bin('eslint'), ['.', '--cache']),
  check('format', bin('prettier'), ['--check', '--log-level', 'warn', '.']),
  check('types', bin('tsc'), ['--noEmit', '--incremental', '--tsBuildInfoFile', buildInfo]),
])
const failedChecks = checks.filter((passed) => !passed).length

const { code, output } = await run(bin('tap'), process.argv.slice(2), process.stdout)
const counts = closingLine(output)
let failed = counts.fail
// Killed, or out of memory, or failing outside of any test: not counted, and not a success.
if (code !== 0 && failed === 0) failed = 1
failed += failedChecks

// Once more at the end, where the log of a long run is read first.
for (const failure of failures(output)) console.log(failure)
console.log(`${counts.pass} passed, ${failed} failed`)
process.exitCode ||= failed === 0 ? 0 : 1

/** Runs one check in the background; its output appears in one piece, when it has failed. */
async function check(name, command, args) {
  const { code, output } = await run(command, args)
  process.stdout.write(code === 0 ? `${name} passed\n` : `${name} failed\n${output}\n`)
  return code === 0
}

/** Runs a command; resolves to how it ended and all it said, which goes to `stream` as it comes. */
function run(command, args, stream) {
  return new Promise((resolve) => {
    let output = ''
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
    running.push(child)
    const keep = (chunk) => {
      output += chunk
      stream?.write(chunk)
    }
    child.stdout.on('data', keep)
    child.stderr.on('data', keep)
    child.once('error', (error) => keep(`${error.message}\n`))
    child.once('close', (code) => {
      running = running.filter((other) => other !== child)
      resolve({ code: code ?? 1, output })
    })
  })
}

/** Each assertion that failed, by its full name, with what tap found out about it. */
function failures(tap) {
  const found = []
  const parser = new Parser()
  parser.on('fail', ({ fullname, diag }) => {
    const details = Object.entries(diag ?? {}).map(
      ([name, value]) => `${name}: ${typeof value === 'string' ? value : inspect(value)}`,
    )
    found.push(`failed: ${fullname}\n${details.join('\n').replace(/^/gm, '  ')}\n`)
  })
  parser.end(tap)
  return found
}

/** tap ends with `# { total: 11, pass: 8, fail: 1 }`, in which zeros are left out. */
function closingLine(output) {
  const line = [...output.matchAll(/^# \{ (total: .*) \}$/gm)].at(-1)?.[1] ?? ''
  const count = (name) => Number(new RegExp(`\\b${name}: (\\d+)`).exec(line)?.[1] ?? 0)
  return { pass: count('pass'), fail: count('fail') }
}

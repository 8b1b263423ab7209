// Makes a clone ready to run; npm runs it before start, test and the like: node scripts/setup.mjs [--browser] [--headless-shell]
// It does only what is missing, says one line for each thing it did, and nothing when there was nothing to do.
// It needs nothing but Node: it is what installs the rest.
import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import {
  accessSync,
  constants,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { delimiter, dirname, join, relative } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseEnv } from 'node:util'

// Where a browser is looked for, in this order, before what puppeteer downloaded: the same as in wa-worker/browser.ts.
const applications = ['/Applications', join(homedir(), 'Applications')].flatMap((folder) => [
  `${folder}/Google Chrome.app/Contents/MacOS/Google Chrome`,
  `${folder}/Chromium.app/Contents/MacOS/Chromium`,
])
const browsers = [
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome-stable',
  '/usr/bin/google-chrome',
  '/snap/bin/chromium',
  ...applications,
  '/usr/bin/microsoft-edge',
]

const leastNode = [20, 19]
const sourceFolders = ['api', 'wa-worker', 'shared', 'scripts']
const browserRetryMs = 24 * 3_600_000

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const at = (...path) => join(root, ...path)
const nodeModules = at('node_modules')
const dist = at('dist')
const installStamp = join(nodeModules, '.setup-stamp')
const buildStamp = join(dist, '.setup-stamp')
const buildInfo = join(dist, '.tsbuildinfo')
const lockFile = join(dist, '.setup-lock')

/** What sessions run on. */
const browser = {
  name: 'browser',
  places: browsers,
  debian: 'chromium',
  download: 'chrome',
  stamp: join(dist, '.setup-browser'),
  downloaded: (puppeteer) => puppeteer.executablePath(),
  advice: `Awfar runs, but its WhatsApp sessions end in BROWSER_MISSING. Do one of these:
  sudo apt-get install -y chromium        Debian; elsewhere install Chromium or Google Chrome
  npm run browser:install                 downloads Chrome for this user
  PUPPETEER_EXECUTABLE_PATH=<file>        in .env, when there is a browser somewhere else`,
}

/** What most sessions of the fault suite run on: the same places as in scripts/faults/browsers.ts. */
const headlessShell = {
  name: 'headless shell',
  places: ['/usr/lib/chromium/chromium-headless-shell'],
  debian: 'chromium-headless-shell',
  download: 'chrome-headless-shell',
  stamp: join(dist, '.setup-headless-shell'),
  downloaded: (puppeteer) => puppeteer.executablePath({ headless: 'shell' }),
  advice: `The fault suite needs one. Do one of these:
  sudo apt-get install -y chromium-headless-shell           Debian
  npx puppeteer browsers install chrome-headless-shell      downloads it for this user`,
}

/** A failure explained to the user; anything else is a fault of this script and keeps its stack. */
class SetupError extends Error {}

let running // the child at work, so that a signal ends it too
let locked = false

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    if (!running) process.exit(1)
    // Not before the child is gone: whoever comes next would work in the same folder.
    running.once('close', () => process.exit(1))
    running.kill('SIGTERM')
  })
}
process.on('exit', unlock)

try {
  await main([
    ...(process.argv.includes('--browser') ? [browser] : []),
    ...(process.argv.includes('--headless-shell') ? [headlessShell] : []),
  ])
} catch (error) {
  if (!(error instanceof SetupError) && !isAccessError(error)) throw error
  console.error(`setup: ${isAccessError(error) ? accessSentence(error) : error.message}`)
  process.exitCode = 1
}

async function main(wanted) {
  checkNode()
  if (isInstalled() && isBuilt() && !lacksEnv()) {
    for (const kind of wanted) await ensureBrowser(kind)
    return
  }
  await lock()
  if (!isInstalled()) await step('dependencies installed', install)
  if (!isBuilt()) await step('built', build).catch(unlessTestsWillTell)
  if (lacksEnv()) writeEnv()
  unlock()
  for (const kind of wanted) await ensureBrowser(kind)
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > leastNode[0] || (major === leastNode[0] && minor >= leastNode[1])) return
  throw new SetupError(
    `Node ${process.versions.node} is too old: install Node ${leastNode.join('.')} or newer (22 or 24 recommended) from https://nodejs.org.`,
  )
}

// Dependencies

function isInstalled() {
  const wanted = sha256(readFileSync(at('package-lock.json')))
  if (readIfThere(installStamp) === wanted) return true
  const installed = readIfThere(join(nodeModules, '.package-lock.json'))
  if (installed === undefined || !matches(JSON.parse(installed).packages)) return false
  writeStamp(installStamp, wanted)
  return true
}

/** Whether what npm says it installed is what the lock file asks for. Packages for other platforms are not there. */
function matches(installed) {
  const { packages: wanted } = JSON.parse(readFileSync(at('package-lock.json'), 'utf8'))
  delete wanted[''] // the project itself
  const omitsDev =
    process.env.NODE_ENV === 'production' || /\bdev\b/.test(process.env.npm_config_omit ?? '')
  return (
    Object.keys(installed).every((path) => path in wanted) &&
    Object.entries(wanted).every(([path, { version, optional, devOptional, dev }]) =>
      path in installed
        ? installed[path].version === version
        : optional || devOptional || (dev && omitsDev),
    )
  )
}

async function install() {
  const npm = process.env.npm_execpath
  // Building needs TypeScript, also where NODE_ENV=production would leave it out.
  const args = ['ci', '--include=dev', '--no-audit', '--no-fund']
  const [command, first] = npm?.endsWith('.js') ? [process.execPath, [npm]] : ['npm', []]
  await run(command, [...first, ...args], {
    what: 'npm ci failed',
    env: { ...process.env, ...npmCache() },
  })
  writeStamp(installStamp, sha256(readFileSync(at('package-lock.json'))))
}

/** npm keeps its cache below HOME; where that cannot be written, as for service accounts, any other place will do. */
function npmCache() {
  const cache = process.env.npm_config_cache ?? join(homedir(), '.npm')
  if (isWritable(nearestExisting(cache))) return {}
  const other = join(tmpdir(), `npm-cache-${process.getuid?.() ?? 'user'}`)
  console.log(`setup: ${cache} is not writable, npm keeps its cache in ${other}`)
  return { npm_config_cache: other }
}

// Build

/** What the compiler makes something of: by its own settings, since one file more or less here would build anew each time. */
function sources() {
  const { exclude } = JSON.parse(readFileSync(at('tsconfig.build.json'), 'utf8'))
  const excluded = exclude.map(globPattern)
  return sourceFolders
    .flatMap((folder) => filesBelow(at(folder)))
    .filter((file) => /\.ts$/.test(file) && !/\.d\.ts$/.test(file))
    .filter((file) => !excluded.some((pattern) => pattern.test(relative(root, file))))
}

/** A glob of a tsconfig, of whole files and of folders, as a regular expression. */
function globPattern(glob) {
  const pattern = glob
    .replaceAll(/[.+^${}()|[\]\\]/g, '\\$&')
    .replaceAll(/(\*\*\/)|(\*\*)|(\*)/g, (_, folders, all) =>
      folders ? '(.*/)?' : all ? '.*' : '[^/]*',
    )
  return new RegExp(`^${pattern}$`)
}

function outputOf(source) {
  return join(dist, relative(root, source).replace(/\.ts$/, '.js'))
}

/** Changes whenever a source, the compiler's settings or the compiler itself may have. */
function fingerprint(files) {
  const inputs = [...files, at('tsconfig.json'), at('tsconfig.build.json'), at('package-lock.json')]
  const parts = inputs.sort().map((file) => {
    const { size, mtimeMs } = statSync(file)
    return `${relative(root, file)} ${size} ${mtimeMs}\n`
  })
  return sha256(parts.join(''))
}

function isBuilt() {
  const files = sources()
  if (files.length === 0) return existsSync(dist) // an image that carries only the built files
  if (!files.every((file) => existsSync(outputOf(file)))) return false
  if (readIfThere(buildStamp) === fingerprint(files)) return true
  // Built by `npm run build`, or copied: good when every output is newer than its source, and there are no others.
  const isNewer = (file) => statSync(outputOf(file)).mtimeMs >= statSync(file).mtimeMs
  return !existsSync(buildStamp) && files.every(isNewer) && staleOutputs(files).length === 0
}

async function build() {
  const files = sources()
  const before = fingerprint(files)
  for (const file of staleOutputs(files)) rmSync(file)
  // The compiler trusts its notes and would not write again what somebody deleted.
  if (!files.every((file) => existsSync(outputOf(file)))) rmSync(buildInfo, { force: true })
  rmSync(buildStamp, { force: true })
  const tsc = join(nodeModules, 'typescript', 'bin', 'tsc')
  if (!existsSync(tsc)) {
    throw new SetupError(
      'the sources are not built and TypeScript is not installed: run npm ci --include=dev',
    )
  }
  await run(process.execPath, [tsc, '-p', 'tsconfig.build.json'], { what: 'the build failed' })
  writeStamp(buildStamp, before)
}

function staleOutputs(files) {
  const wanted = new Set(files.map(outputOf))
  return filesBelow(dist).filter(
    (file) => /\.js(\.map)?$/.test(file) && !wanted.has(file.replace(/\.map$/, '')),
  )
}

/** Tests run from the sources, and npm test reports a type error as one failed step among the others. */
function unlessTestsWillTell(error) {
  if (process.env.npm_lifecycle_event !== 'pretest' || !(error instanceof SetupError)) throw error
  console.error(`setup: ${error.message}`)
}

// Settings

function lacksEnv() {
  return process.env.NODE_ENV !== 'production' && !existsSync(at('.env'))
}

function writeEnv() {
  const text = `# Made at the first start. Every setting is explained in .env.example.
JWT_SECRET=${randomBytes(48).toString('base64url')}
`
  writeFileSync(at('.env'), text, { mode: 0o600, flag: 'wx' })
  console.log('setup: .env written, with a new JWT_SECRET')
}

// Browsers

async function ensureBrowser(kind) {
  const env = { ...parseEnv(readIfThere(at('.env')) ?? ''), ...process.env }
  // A path that is set is not second-guessed: the worker says so when nothing is there.
  const isSettled = env.WA_ENGINE === 'simulator' || env.PUPPETEER_EXECUTABLE_PATH
  if ((kind === browser && isSettled) || (await isThere(kind))) return
  const triedAt = statSync(kind.stamp, { throwIfNoEntry: false })?.mtimeMs ?? 0
  if (Date.now() - triedAt > browserRetryMs) {
    await lock()
    try {
      if (await isThere(kind)) return // another process was waited for, and installed one
      const failure = await installBrowser(kind)
      if (failure === undefined) return
      console.error(failure)
      writeStamp(kind.stamp, '')
    } finally {
      unlock()
    }
  }
  console.error(`setup: no ${kind.name} found. ${kind.advice}`)
}

async function isThere({ places, downloaded }) {
  if (places.some(existsSync)) return true
  const { default: puppeteer } = await import('puppeteer')
  return existsSync(downloaded(puppeteer))
}

/** Tries what this user may do. Answers why nothing helped, or undefined. */
async function installBrowser({ name, debian, download }) {
  const failures = []
  if (process.getuid?.() === 0 && isOnPath('apt-get')) {
    console.log(`setup: no ${name} found, installing ${debian} with apt-get`)
    const aptEnv = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
    const install = ['install', '-y', '--no-install-recommends', debian]
    try {
      await step(`${debian} installed`, async () => {
        await run('apt-get', ['update'], { what: 'apt-get update failed', env: aptEnv })
        await run('apt-get', install, { what: `apt-get install ${debian} failed`, env: aptEnv })
      })
      return undefined
    } catch (error) {
      failures.push(error)
    }
  }
  const puppeteer = join(nodeModules, 'puppeteer', 'lib', 'cjs', 'puppeteer', 'node', 'cli.js')
  console.log(`setup: no ${name} found, downloading ${download}`)
  try {
    await step(`${download} downloaded`, () =>
      run(process.execPath, [puppeteer, 'browsers', 'install', download], {
        what: `the download of ${download} failed`,
        failure: /^Error/, // after a page on how to use the command
      }),
    )
    return undefined
  } catch (error) {
    failures.push(error)
  }
  return failures.map((error) => `setup: ${error.message}`).join('\n')
}

function isOnPath(name) {
  return (process.env.PATH ?? '').split(delimiter).some((folder) => existsSync(join(folder, name)))
}

// One setup at a time

/** Waits for its turn. The lock names a setup and what it runs: when both are gone it is taken over. */
async function lock() {
  mkdirSync(dist, { recursive: true })
  const draft = `${lockFile}-${process.pid}`
  writeFileSync(draft, String(process.pid))
  try {
    for (let told = false; ;) {
      try {
        linkSync(draft, lockFile) // a file that is there at once with its content, or not at all
        locked = true
        return
      } catch (error) {
        if (error.code !== 'EEXIST') throw error
      }
      const content = readIfThere(lockFile)
      if (content && !content.split(' ').some((pid) => isSetup(Number(pid)))) {
        takeAway(content)
        continue
      }
      if (!told) console.log('setup: waiting for another setup to finish')
      told = true
      await sleep(100)
    }
  } finally {
    rmSync(draft, { force: true })
  }
}

/** Removes the lock of a dead process. Several may find it dead: only one at a time looks again and removes it. */
function takeAway(deadLock) {
  const guard = `${lockFile}-takeover`
  try {
    writeFileSync(guard, '', { flag: 'wx' })
  } catch (error) {
    if (error.code !== 'EEXIST') throw error
    const madeAt = statSync(guard, { throwIfNoEntry: false })?.mtimeMs
    if (madeAt !== undefined && Date.now() - madeAt > 10_000) rmSync(guard, { force: true })
    return
  }
  try {
    if (readIfThere(lockFile) === deadLock) rmSync(lockFile, { force: true })
  } finally {
    rmSync(guard, { force: true })
  }
}

function unlock() {
  if (locked) rmSync(lockFile, { force: true })
  locked = false
}

/** Whether this pid is a setup at work, or what it runs. After the restart of a container it may well be something else, or this process. */
function isSetup(pid) {
  if (pid === process.pid) return false
  try {
    process.kill(pid, 0)
  } catch (error) {
    if (error.code !== 'EPERM') return false
  }
  if (process.platform !== 'linux') return true
  return /setup\.mjs|npm|tsc|apt-get|puppeteer/.test(readIfThere(`/proc/${pid}/cmdline`) ?? '')
}

// Small things

async function step(done, work) {
  const begin = Date.now()
  await work()
  console.log(`setup: ${done} (${Math.max(1, Math.round((Date.now() - begin) / 1000))} s)`)
}

/** Runs a command and keeps quiet about it, unless it fails: then its last lines, from the first that matches `failure`, tell why. */
async function run(command, args, { what, env = process.env, failure = /^/ }) {
  const lines = []
  const ended = await new Promise((resolve) => {
    running = spawn(command, args, { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] })
    const keep = (chunk) => {
      lines.push(...chunk.toString().split('\n'))
      lines.splice(0, lines.length - 200)
    }
    if (locked && running.pid) writeFileSync(lockFile, `${process.pid} ${running.pid}`)
    running.stdout.on('data', keep)
    running.stderr.on('data', keep)
    running.once('error', (error) => resolve(error.message))
    running.once('close', (code, signal) => resolve(code ?? signal))
  })
  running = undefined
  if (ended === 0) return
  const told = lines.filter((line) => line.trim() !== '')
  const output = told.slice(told.findIndex((line) => failure.test(line))).slice(-40)
  throw new SetupError([`${what} (${ended})`, ...output].join('\n  '))
}

function filesBelow(folder) {
  if (!existsSync(folder)) return []
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? filesBelow(join(folder, entry.name)) : [join(folder, entry.name)],
  )
}

function readIfThere(file) {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    if (error.code === 'ENOENT' || error.code === 'ESRCH') return undefined
    throw error
  }
}

/** A stamp only saves time: where it cannot be written, the next run looks more closely. */
function writeStamp(file, text) {
  try {
    writeFileSync(file, text)
  } catch (error) {
    if (!isAccessError(error)) throw error
  }
}

function sha256(data) {
  return createHash('sha256').update(data).digest('hex')
}

function nearestExisting(path) {
  return existsSync(path) ? path : nearestExisting(dirname(path))
}

function isWritable(path) {
  try {
    accessSync(path, constants.W_OK)
    return true
  } catch {
    return false
  }
}

function isAccessError(error) {
  return ['EACCES', 'EPERM', 'EROFS'].includes(error.code)
}

function accessSentence({ path, message }) {
  const owner = path && statSync(nearestExisting(path)).uid
  return `${message}: run as the owner of this folder${owner === undefined ? '' : ` (uid ${owner})`}, or give it to the current user with chown -R.`
}

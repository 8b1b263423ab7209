/**
 * npm run security: rules no code may break, licences, versions with known holes, and secrets that were committed. Ends with the line
 * "N passed, N failed"; what could not be checked says so.
 */
import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { ESLint } from 'eslint'
import { root } from '../../shared/root.ts'

const run = promisify(execFile)

interface LockedPackage {
  version?: string
  license?: string
  dev?: boolean
  link?: boolean
}

/** A check passes without faults; `unknown` when it could not be made. */
type Outcome = string[] | { unknown: string }

const licences = new Set([
  ...[
    'MIT',
    'MIT-0',
    'ISC',
    'BSD-2-Clause',
    'BSD-3-Clause',
    '0BSD',
    'Apache-2.0',
    'BlueOak-1.0.0',
    'Unlicense',
    'CC0-1.0',
  ],
  ...['CC-BY-3.0', 'CC-BY-4.0', 'Python-2.0', 'WTFPL', 'PostgreSQL', 'Zlib'],
])
/** What is let in all the same, and why: a package, or all of a scope. */
const excepted: Record<string, string> = {
  '@img/': 'libvips, LGPL-3.0: loaded as a library of its own',
  'node-webpmux':
    'LGPL-3.0: comes with whatsapp-web.js, as a package of its own that can be replaced',
  async: 'MIT, by its LICENSE: the old version that fluent-ffmpeg has says so in another field',
  'jsonc-simple-parser': 'says nothing; comes with tap, for development only, and is not shipped',
}

/** The versions in which holes that concern us were closed: anything older is a fault. */
const floors: Record<string, string> = {
  fastify: '5.8.5',
  'fast-jwt': '6.3.0',
  '@fastify/proxy-addr': '5.1.1',
}

const secrets: [string, RegExp][] = [
  ['a private key', /-----BEGIN (RSA |EC |OPENSSH |PGP )?PRIVATE KEY/],
  ['an AWS key', /\bAKIA[0-9A-Z]{16}\b/],
  ['a GitHub token', /\bgh[pousr]_[A-Za-z0-9]{36}\b/],
  ['a Slack token', /\bxox[baprs]-[A-Za-z0-9-]{20,}/],
  ['a Stripe key', /\b[sr]k_live_[A-Za-z0-9]{20,}/],
  ['an OpenAI key', /\bsk-[A-Za-z0-9]{40,}/],
  ['a Google key', /\bAIza[0-9A-Za-z_-]{35}\b/],
  ['a JWT with a signature', /\beyJ[\w-]{20,}\.eyJ[\w-]{20,}\.[\w-]{40,}/],
  ['one of our API keys', /\bawf_[\w-]{43}\b/],
  [
    'a database URL with a password',
    /postgres(ql)?:\/\/(?!(user|nobody|postgres)[:@])[^\s:'"`$]+:[^\s@'"`$]{8,}@(?!127\.|localhost|host)/,
  ],
]

const checks: [string, () => Promise<Outcome>][] = [
  ['code keeps to the rules', codeRules],
  ['licences are permissive', licenceList],
  ['no version is below its floor', versionFloors],
  ['no known vulnerability', knownVulnerabilities],
  ['no secret is committed', secretScan],
]

let failed = 0
let passed = 0
for (const [name, check] of checks) {
  const outcome = await check()
  if (!Array.isArray(outcome)) {
    console.log(`?  ${name}: not checked, ${outcome.unknown}`)
    continue
  }
  if (outcome.length === 0) passed += 1
  else failed += 1
  console.log(`${outcome.length === 0 ? 'ok' : 'NO'} ${name}`)
  for (const fault of outcome) console.log(`   ${fault}`)
}
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1

/** Text that becomes code, comparisons that tell secrets by their time, chance that can be foretold. */
async function codeRules(): Promise<Outcome> {
  const forbid = (selector: string, message: string) => ({ selector, message })
  const eslint = new ESLint({
    cwd: root,
    overrideConfig: {
      rules: {
        'no-eval': 'error',
        'no-implied-eval': 'error',
        'no-new-func': 'error',
        'no-script-url': 'error',
        'no-control-regex': 'off',
        'no-restricted-syntax': [
          'error',
          forbid("CallExpression[callee.property.name='createCipher']", 'Use createCipheriv.'),
          forbid(
            "CallExpression[callee.name='createHash'][arguments.0.value=/^(md5|sha1)$/i]",
            'Use SHA-256.',
          ),
          forbid(
            "Property[key.name='rejectUnauthorized'][value.value=false]",
            'Certificates are checked.',
          ),
          forbid("Property[key.name='trustProxy'][value.value=true]", 'Name the proxies.'),
        ],
      },
    },
  })
  const results = await eslint.lintFiles(['api/**/*.ts', 'shared/**/*.ts', 'wa-worker/**/*.ts'])
  return results
    .filter(({ filePath }) => !filePath.includes('/test/'))
    .flatMap(({ filePath, messages }) =>
      messages
        .filter(({ severity }) => severity === 2)
        .map(({ line, message }) => `${filePath.slice(root.length + 1)}:${line} ${message}`),
    )
}

async function lockedPackages(): Promise<[string, LockedPackage][]> {
  const lock = JSON.parse(await readFile(join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, LockedPackage>
  }
  return Object.entries(lock.packages).filter(([path]) => path !== '')
}
function nameOf(path: string): string {
  return path.split('node_modules/').at(-1)!
}

async function licenceList(): Promise<Outcome> {
  const counts = new Map<string, number>()
  const faults: string[] = []
  for (const [path, { license, dev }] of await lockedPackages()) {
    const name = nameOf(path)
    const licence = license ?? 'none'
    counts.set(licence, (counts.get(licence) ?? 0) + 1)
    const parts = licence.replaceAll(/[()]/g, '').split(/ OR /)
    const fine = parts.some((part) => part.split(/ AND /).every((one) => licences.has(one)))
    if (fine || name in excepted || `${name.split('/')[0]}/` in excepted) continue
    faults.push(`${name}: ${licence}${dev ? ' (development only)' : ''}`)
  }
  const sorted = [...counts].sort(([, a], [, b]) => b - a)
  console.log(`   ${sorted.map(([licence, count]) => `${licence} ${count}`).join(', ')}`)
  return faults
}

async function versionFloors(): Promise<Outcome> {
  const faults: string[] = []
  const number = (version: string) =>
    version
      .split(/[.-]/)
      .slice(0, 3)
      .reduce((sum, part) => sum * 10_000 + Number(part), 0)
  for (const [path, { version = '0.0.0' }] of await lockedPackages()) {
    const floor = floors[nameOf(path)]
    if (floor !== undefined && number(version) < number(floor))
      faults.push(`${path} ${version} is below ${floor}`)
  }
  return faults
}

async function knownVulnerabilities(): Promise<Outcome> {
  try {
    const { stdout } = await run('npm', ['audit', '--json', '--omit=dev'], {
      cwd: root,
      maxBuffer: 1e8,
    }).catch((error: { stdout?: string }) => ({ stdout: error.stdout ?? '' }))
    const report = JSON.parse(stdout) as { vulnerabilities?: Record<string, { severity: string }> }
    if (!report.vulnerabilities) return { unknown: 'the registry offers no advisories' }
    return Object.entries(report.vulnerabilities)
      .filter(([, { severity }]) => severity === 'high' || severity === 'critical')
      .map(([name, { severity }]) => `${name}: ${severity}`)
  } catch {
    return { unknown: 'the registry does not answer' }
  }
}

async function secretScan(): Promise<Outcome> {
  const { stdout } = await run('git', ['ls-files', '-z'], { cwd: root }).catch(() => ({
    stdout: '',
  }))
  const files = stdout.split('\0').filter((file) => file !== '' && file !== 'package-lock.json')
  if (files.length === 0) return { unknown: 'this is no git checkout' }
  const faults: string[] = []
  for (const file of files) {
    const text = await readFile(join(root, file), 'utf8').catch(() => '')
    for (const [what, pattern] of secrets) {
      const line = text.split('\n').findIndex((line) => pattern.test(line))
      if (line >= 0) faults.push(`${file}:${line + 1} looks like ${what}`)
    }
    if (/(^|\/)\.env$/.test(file)) faults.push(`${file} is committed`)
  }
  return faults
}

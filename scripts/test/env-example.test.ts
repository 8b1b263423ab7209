import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { apiSchema } from '../../api/config.ts'
import { readEnv } from '../../shared/config.ts'
import { root } from '../../shared/root.ts'
import { workerSchema } from '../../wa-worker/config.ts'

/** What the processes read. A new one belongs in this list. */
const schemas = [apiSchema, workerSchema]

/** What code reads past the schemas, such as a command that wants a word for one run; not what every system sets. */
const readDirectly = ['api', 'shared', 'wa-worker', 'scripts'].flatMap((folder) =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith('.ts'))
    .flatMap((name) => [
      ...readFileSync(join(root, folder, name), 'utf8').matchAll(/process\.env\['([A-Z]\w+)'\]/g),
    ])
    .map(([, name]) => name!)
    .filter((name) => name !== 'PATH'),
)

const lines = readFileSync(join(root, '.env.example'), 'utf8').split('\n')
const settings = lines.flatMap((line, index) => {
  const [, comment, name, value] = /^(# )?([A-Z][A-Z0-9_]*)=(.*)$/.exec(line) ?? []
  return name === undefined ? [] : [{ name, value: value!, index, optional: comment !== undefined }]
})
const isBar = (index: number) => /^# -{20,}$/.test(lines[index] ?? '')
const known = new Set([...schemas.flatMap((schema) => Object.keys(schema)), ...readDirectly])

void t.test('every setting that is read is explained in .env.example, once, and no other', (t) => {
  t.strictSame(settings.map(({ name }) => name).sort(), [...known].sort())
  for (const { name, index, optional } of settings) {
    const above = lines[index - 1]!
    t.match(above, /^# .{10,}/, `${name} has an explanation`)
    if (!optional) continue
    let start = index
    while (lines[start - 1]?.startsWith('#')) start -= 1
    t.match(lines.slice(start, index).join('\n'), /Default: /, `${name} tells its default`)
  }
  t.end()
})

void t.test('a setting stands in the section of the processes that read it', (t) => {
  const sectionOf = (index: number) =>
    lines.slice(0, index).findLast((_, i) => isBar(i - 1) && isBar(i + 1))
  for (const { name, index } of settings) {
    const readers = [name in apiSchema && 'API', name in workerSchema && 'Worker'].filter(Boolean)
    const section = readers.length === 2 ? 'Both processes' : (readers[0] ?? 'Commands')
    t.equal(sectionOf(index), `# ${section}`, name)
  }
  t.end()
})

void t.test('the examples are valid, and what is not commented out is required', (t) => {
  const env = Object.fromEntries(settings.map(({ name, value }) => [name, value]))
  for (const schema of schemas) {
    const required = settings.filter(({ name, optional }) => !optional && name in schema)
    const secrets = Object.fromEntries(required.map(({ name }) => [name, 'x'.repeat(40)]))
    t.doesNotThrow(() => readEnv<object>(schema, { ...env, ...secrets }))
    for (const { name } of required) {
      t.throws(() => readEnv<object>(schema, { ...env, ...secrets, [name]: '' }), {
        message: new RegExp(`${name} is missing`),
      })
    }
  }
  t.end()
})

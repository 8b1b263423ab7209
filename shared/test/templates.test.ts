import fc from 'fast-check'
import t from 'tap'
import { parseTemplate, render, variablesOf } from '../templates.ts'

void t.test('variables are put in, and fallbacks where there is no value', (t) => {
  const text = 'Hello {{name|there}}, your order {{ order }} is ready.{{note|}}'
  t.strictSame(variablesOf(text), [
    { name: 'name', fallback: 'there' },
    { name: 'order', fallback: null },
    { name: 'note', fallback: '' },
  ])
  t.strictSame(render(text, { name: 'Ada', order: '42', note: ' Bye!' }), {
    body: 'Hello Ada, your order 42 is ready. Bye!',
    missing: [],
  })
  t.strictSame(render(text, { order: '42' }), {
    body: 'Hello there, your order 42 is ready.',
    missing: [],
  })
  t.strictSame(render(text, { name: null, order: null }), {
    body: 'Hello there, your order {{ order }} is ready.',
    missing: ['order'],
  })
  t.equal(render('{{a|x}}', { a: '' }).body, '', 'an empty value is one')
  t.end()
})

void t.test('what every object has is no value', (t) => {
  const names = ['constructor', 'toString', '__proto__', 'hasOwnProperty']
  for (const name of names) t.strictSame(render(`{{${name}}}`, {}).missing, [name])
  t.end()
})

void t.test('a variable that stands once without a fallback needs a value', (t) => {
  const text = '{{name|there}} {{name}} {{name|you}}'
  t.strictSame(variablesOf(text), [{ name: 'name', fallback: null }])
  t.strictSame(render(text, {}), { body: 'there {{name}} you', missing: ['name'] })
  t.end()
})

void t.test(
  'single braces are text, double ones that make no sense are refused where they are',
  (t) => {
    for (const text of [
      '{',
      '}',
      '{a}',
      'a } b { c',
      '{ {name} }',
      'x{y}{{z}}',
      '{{a}}}',
      '{{a|{b} c}}',
    ]) {
      t.doesNotThrow(() => parseTemplate(text), text)
    }
    for (const [text, at] of [
      ['{{', 1],
      ['Hello {{name', 7],
      ['Hello {{name}', 7],
      ['{{a}} {{b', 7],
      ['name}}', 5],
      ['{{a}} b}}', 8],
      ['{{a}}}}', 6],
      ['{{}}', 1],
      ['{{ }}', 1],
      ['{{|there}}', 1],
      ['{{first name}}', 1],
      ['{{1st}}', 1],
      ['{{a.b}}', 1],
      ['{{{a}}}', 1],
      ['{{a {{b}}', 1],
      ['{{a|{{b}}}}', 1],
      ['👋 {{', 3],
      [`{{${'x'.repeat(65)}}}`, 1],
    ] as const) {
      t.throws(() => parseTemplate(text), { message: new RegExp(`at character ${at}$`) }, text)
    }
    t.end()
  },
)

void t.test('a name is the same however its accents are written', (t) => {
  const [nfc, nfd] = ['prénom'.normalize('NFC'), 'prénom'.normalize('NFD')]
  for (const [written, given] of [
    [nfc, nfd],
    [nfd, nfc],
    [nfd, nfd],
  ] as const) {
    t.equal(render(`Salut {{${written}|toi}}`, { [given]: 'Zoé' }).body, 'Salut Zoé')
  }
  t.strictSame(variablesOf(`{{${nfc}|toi}} {{${nfd}}}`), [{ name: nfc, fallback: null }])
  t.strictSame(render(`{{${nfd}}} {{${nfc}}}`, {}).missing, [nfc])
  t.equal(render(`{{${nfc}}}`, { [nfc]: 'Ada', [nfd]: 'Zoé' }).body, 'Zoé', 'the last one counts')
  t.end()
})

void t.test('a new template has no brace in a fallback, which would end before its own', (t) => {
  for (const [text, at] of [
    ['Hi {{name|{x}}}', 11],
    ['Hi {{name|{x}}}!', 11],
    ['👋 {{a}} {{b|c {d} e}}', 15],
  ] as const) {
    t.throws(() => parseTemplate(text, true), {
      message: `has a "{" in the fallback of a variable at character ${at}`,
    })
    t.doesNotThrow(() => parseTemplate(text), 'one that is stored is read all the same')
  }
  for (const text of ['{x} {{a|b}} {', '{{a|b } c}}', '{{a}}}']) {
    t.doesNotThrow(() => parseTemplate(text, true), text)
  }
  t.end()
})

const name = fc.stringMatching(/^[A-Za-zà-öø-ÿ_][A-Za-z0-9_]{0,20}$/)
const plain = fc.string({ unit: 'binary' }).map((text) => text.replaceAll(/[{}|]/g, '-'))
/** Full of what a template is made of. */
const braces = fc.string({
  unit: fc.constantFrom('{', '{{', '}', '}}', '|', 'a', 'bc', ' ', '$&', '\n'),
})
const tag = fc.record({ name, fallback: fc.option(plain) })
const written = ({ name, fallback }: { name: string; fallback: string | null }) =>
  fallback === null ? `{{${name}}}` : `{{${name}|${fallback}}}`

void t.test('property: a text is refused, or its pieces are the text', (t) => {
  let accepted = 0
  fc.assert(
    fc.property(braces, (text) => {
      let parts
      try {
        parts = parseTemplate(text)
      } catch (error) {
        return /at character \d+$/.test((error as Error).message) && /\{\{|\}\}/.test(text)
      }
      accepted += 1
      return parts.map((part) => (typeof part === 'string' ? part : part.written)).join('') === text
    }),
    { numRuns: 5_000 },
  )
  t.ok(accepted > 500, `${accepted} were accepted`)
  t.end()
})

void t.test('property: values are put in to the letter, whatever is in them', (t) => {
  fc.assert(
    fc.property(fc.array(fc.tuple(plain, tag)), plain, braces, (pieces, end, value) => {
      const text = pieces.map(([before, tag]) => before + written(tag)).join('') + end
      const values = Object.fromEntries(pieces.map(([, { name }]) => [name, value + name]))
      const wanted = pieces.map(([before, { name }]) => before + value + name).join('') + end
      t.strictSame(render(text, values), { body: wanted, missing: [] })
    }),
    { numRuns: 500 },
  )
  t.end()
})

void t.test('property: missing is exactly what has neither value nor fallback', (t) => {
  fc.assert(
    fc.property(fc.array(tag), fc.dictionary(name, fc.option(plain)), (tags, given) => {
      const values = { ...given }
      // Half of the variables get a value.
      for (const { name } of tags.filter((_, index) => index % 2 === 0)) values[name] = 'x'
      const { body, missing } = render(tags.map(written).join(' '), values)
      const wanted = tags.filter(
        ({ name, fallback }) =>
          fallback === null && (Object.hasOwn(values, name) ? values[name] : null) === null,
      )
      t.strictSame(missing, [...new Set(wanted.map(({ name }) => name))])
      for (const { name } of wanted) t.ok(body.includes(`{{${name}}}`))
    }),
    { numRuns: 500 },
  )
  t.end()
})

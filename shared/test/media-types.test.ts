import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import sharp from 'sharp'
import { Readable } from 'node:stream'
import t from 'tap'
import { receiveMedia } from '../media-files.ts'
import { inspectMedia } from '../media-inspect.ts'
import { cleanFilename } from '../media-types.ts'
import { findFfmpeg, toVoiceNote } from '../media-voice.ts'
import { root } from '../root.ts'

const dir = t.testdir()
const path = (name: string) => join(root, 'shared/test/fixtures/media', name)
const fixture = (name: string) => readFileSync(path(name))
const plain = (width: number, height: number) =>
  sharp({ create: { width, height, channels: 3, background: 'teal' }, limitInputPixels: false })
const picture = await plain(40, 30).jpeg().toBuffer()
const gif = await plain(4, 4).gif().toBuffer()
const png = await plain(4, 4).png().toBuffer()
const pdf = Buffer.from('%PDF-1.4\n%%EOF\n')
const html = Buffer.from('<html><script>alert(1)</script></html>')
const text = (content: string) => Buffer.from(content)
const with_ = (...parts: Buffer[]) => Buffer.concat(parts)

/** What becomes of these bytes: their type, or the code of the refusal. */
async function outcome(bytes: Buffer): Promise<string> {
  try {
    const file = await receiveMedia(Readable.from([bytes]), dir)
    return (await inspectMedia(file.path, file.size)).mimeType
  } catch (error) {
    return (error as { code?: string }).code ?? String(error)
  }
}

/** A header that claims a size nobody has paid for. */
function pngOf(width: number, height: number): Buffer {
  const bytes = Buffer.from(png)
  bytes.writeUInt32BE(width, 16)
  bytes.writeUInt32BE(height, 20)
  const crc = crc32(bytes.subarray(12, 29))
  bytes.writeUInt32BE(crc, 29)
  return bytes
}

function crc32(bytes: Buffer): number {
  let crc = 0xffff_ffff
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb8_8320 : crc >>> 1
  }
  return (crc ^ 0xffff_ffff) >>> 0
}

/** The directory of a docx that claims what it does not hold. */
function docxBomb(): Buffer {
  const bytes = Buffer.from(fixture('letter.docx'))
  for (let at = bytes.indexOf('PK\x01\x02'); at >= 0; at = bytes.indexOf('PK\x01\x02', at + 4)) {
    bytes.writeUInt32LE(0xf000_0000, at + 24)
  }
  return bytes
}

/** The same whose parts each claim almost the whole file. */
function docxOverlapping(): Buffer {
  const bytes = Buffer.from(fixture('letter.docx'))
  for (let at = bytes.indexOf('PK\x01\x02'); at >= 0; at = bytes.indexOf('PK\x01\x02', at + 4)) {
    bytes.writeUInt32LE(bytes.length - 100, at + 20)
  }
  return bytes
}

const refused = 'UNSUPPORTED_MEDIA_TYPE'
const lies: [string, Buffer, string][] = [
  ['a program', with_(text('MZ'), randomBytes(500)), refused],
  ['a program of Linux', with_(text('\x7fELF'), randomBytes(500)), refused],
  ['random bytes', with_(Buffer.from([0]), randomBytes(5_000)), refused],
  ['SVG', text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'), refused],
  ['SVG with a prolog', text('<?xml version="1.0"?><svg><script>1</script></svg>'), refused],
  [
    'SVG with an entity',
    text('<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg/>'),
    refused,
  ],
  ['SVG behind blanks and a BOM', text('\ufeff \n\t<svg><foreignObject/></svg>'), refused],
  ['SVG behind a comment', text('<!-- a --><svg/>'), refused],
  ['HTML', html, refused],
  ['HTML in capitals', text('<!DOCTYPE HTML><BODY>'), refused],
  ['PHP', text('<?php system($_GET[0]);'), refused],
  ['XML', text('<?xml version="1.0"?><a/>'), refused],
  ['a zip', fixture('archive.zip'), refused],
  ['a docx that is a bomb', docxBomb(), refused],
  ['a docx whose parts overlap', docxOverlapping(), refused],
  ['half a docx', fixture('letter.docx').subarray(0, 500), refused],
  ['an encrypted docx', fixture('encrypted.docx'), refused],
  ['a presentation', fixture('slides.ppt'), refused],
  ['the head of a doc', fixture('letter.doc').subarray(0, 600), refused],
  ['tiff', await plain(4, 4).tiff().toBuffer(), refused],
  ['avif', await plain(16, 16).avif().toBuffer(), refused],
  ['Matroska', fixture('clip.mkv'), refused],
  ['Theora', fixture('clip.ogv'), refused],
  ['m4a', fixture('tone.m4a'), refused],
  ['flac', fixture('tone.flac'), refused],
  ['half a jpeg', picture.subarray(0, 200), refused],
  ['the magic of a jpeg and HTML', with_(Buffer.from([0xff, 0xd8, 0xff]), html), refused],
  ['the magic of a gif and a script', text('GIF89a=1;alert(1)//'), refused],
  ['the magic of a png alone', png.subarray(0, 8), refused],
  ['the beginning of an mp4', fixture('clip.mp4').subarray(0, 40), refused],
  ['the magic of an mp3 and HTML', with_(Buffer.from([0xff, 0xfb, 0x90, 0x64]), html), refused],
  ['the magic of an ogg', with_(text('OggS'), Buffer.alloc(100)), refused],
  ['UTF-16', with_(Buffer.from([0xff, 0xfe]), Buffer.from('text', 'utf16le')), refused],
  ['Latin-1', Buffer.from('Grüße', 'latin1'), refused],
  ['text with NUL', text('a\0b'), refused],
  ['text with NUL far behind', with_(Buffer.alloc(100_000, 0x61), Buffer.from([0])), refused],
  ['text that breaks off in a character', text('ü').subarray(0, 1), refused],
  ['a pixel bomb', pngOf(50_000, 50_000), 'FILE_TOO_LARGE'],
  ['nothing', Buffer.alloc(0), 'VALIDATION_FAILED'],
  // Kept, under the type whose bytes they begin with, and served as nothing else.
  ['a gif with a script', with_(gif, text(';alert(1)')), 'image/gif'],
  ['a jpeg with HTML', with_(picture, html), 'image/jpeg'],
  ['a png with PHP', with_(png, text('<?php 1;')), 'image/png'],
  ['a pdf with a zip', with_(pdf, fixture('archive.zip')), 'application/pdf'],
  ['a jpeg with a zip', with_(picture, fixture('archive.zip')), 'image/jpeg'],
  ['a script', text('#!/bin/sh\nrm -rf /\n'), 'text/plain'],
  ['text that begins like a bitmap', text('BMW is a car'), 'text/plain'],
  ['a contact', text('BEGIN:VCARD\r\nVERSION:3.0\r\nEND:VCARD\r\n'), 'text/plain'],
  ['text in many letters', text('日本語 ελληνικά 😀\n'.repeat(9_999)), 'text/plain'],
  ['an address in angle brackets', text('<a@b.example> wrote'), 'text/plain'],
]

void t.test('a file is what its bytes say, and nothing else', async (t) => {
  t.ok(lies.length >= 40)
  for (const [what, bytes, expected] of lies) t.equal(await outcome(bytes), expected, what)
})

void t.test('a million entries do not take the time of others', async (t) => {
  // As many as fit: the shortest local header each.
  const entry = Buffer.alloc(31)
  entry.write('PK\x03\x04', 'latin1')
  entry.writeUInt16LE(1, 26)
  entry.write('a', 30)
  const many = Buffer.concat(Array.from({ length: 300_000 }, () => entry))
  t.equal(await outcome(many), refused)
})

void t.test('file names are harmless', (t) => {
  const names: [string, string][] = [
    ['Foto.jpg', 'Foto.jpg'],
    ['Foto.JPEG', 'Foto.JPEG'],
    ['../../etc/passwd', 'passwd.jpg'],
    ['..%2f..%2fa.jpg', '.._2f.._2fa.jpg'.replace(/^\.+/, '')],
    ['C:\\fakepath\\a.jpg', 'a.jpg'],
    ['a\0b.jpg', 'ab.jpg'],
    ['a\r\nset-cookie: x=1.jpg', 'aset-cookie_ x=1.jpg'],
    ['a"b;c.jpg', 'a_b_c.jpg'],
    ['gpj.\u202eexe.jpg', 'gpj.exe.jpg'],
    ['CON', '_CON.jpg'],
    ['con.jpg', '_con.jpg'],
    ['lpt1.txt', '_lpt1.txt.jpg'],
    ['evil.html', 'evil.html.jpg'],
    ['setup.exe', 'setup.exe.jpg'],
    ['.htaccess', 'htaccess.jpg'],
    ['...', 'file.jpg'],
    ['', 'file.jpg'],
    ['.jpg', 'jpg.jpg'],
    ['ñandú 😀.jpg', 'ñandú 😀.jpg'],
    ['trailing. ', 'trailing.jpg'],
  ]
  for (const [given, expected] of names)
    t.equal(cleanFilename(given, 'image/jpeg'), expected, given)
  const long = cleanFilename(`${'ü'.repeat(4_096)}.jpg`, 'image/jpeg')
  t.ok(Buffer.byteLength(long) <= 200 && long.endsWith('ü.jpg'))
  t.equal(
    cleanFilename('a.zip', 'application/zip'),
    'a.zip',
    'what we do not know keeps its ending',
  )
  t.end()
})

void t.test('a recording becomes a voice note, or it is said why not', async (t) => {
  const opus = { path: path('tone.ogg'), mimeType: 'audio/ogg' }
  const mp3 = { path: path('tone.mp3'), mimeType: 'audio/mpeg' }
  const none = { dir, ffmpeg: undefined }
  t.strictSame(await toVoiceNote(opus, none), { path: opus.path, converted: false })
  const why = { code: 'VOICE_NOT_POSSIBLE', statusCode: 422 }
  await t.rejects(toVoiceNote(mp3, none), { ...why, message: /ffmpeg/ })
  const vorbis = { path: path('tone-vorbis.ogg'), mimeType: 'audio/ogg' }
  await t.rejects(toVoiceNote(vorbis, none), { ...why, message: /ffmpeg/ })
  const clip = { path: path('clip.mp4'), mimeType: 'video/mp4' }
  await t.rejects(toVoiceNote(clip, { dir, ffmpeg: '/bin/true' }), why)

  // In the place of ffmpeg: one that answers with a voice note, and two that do not.
  const folder = join(dir, 'bin')
  mkdirSync(folder)
  const program = (name: string, script: string) => {
    writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
    return join(folder, name)
  }
  const good = program('ffmpeg', `for out; do :; done; cp '${opus.path}' "$out"`)
  const made = await toVoiceNote(mp3, { dir, ffmpeg: good })
  t.equal(made.converted, true)
  t.ok(readFileSync(made.path).equals(fixture('tone.ogg')))
  for (const script of ['exit 1', 'for out; do :; done; echo x > "$out"']) {
    await t.rejects(toVoiceNote(mp3, { dir, ffmpeg: program('bad', script) }), why)
  }

  t.equal(await findFfmpeg({}, `/nowhere:${folder}`), good)
  t.equal(await findFfmpeg({}, '/nowhere'), undefined)
  t.equal(await findFfmpeg({ FFMPEG_PATH: good }, ''), good)
  await t.rejects(findFfmpeg({ FFMPEG_PATH: '/nowhere' }, folder), { message: /FFMPEG_PATH/ })

  const real = await findFfmpeg({})
  await t.test('by ffmpeg itself', { skip: real ? false : 'no ffmpeg in PATH' }, async (t) => {
    for (const name of ['tone.mp3', 'tone.wav', 'tone.webm', 'tone-vorbis.ogg']) {
      const mimeType = { mp3: 'audio/mpeg', wav: 'audio/wav', webm: 'audio/webm' }[name.slice(5)]
      const voice = await toVoiceNote(
        { path: path(name), mimeType: mimeType ?? 'audio/ogg' },
        { dir, ffmpeg: real },
      )
      t.match(await inspectMedia(voice.path, 1), { mimeType: 'audio/ogg', kind: 'audio' }, name)
    }
  })
})

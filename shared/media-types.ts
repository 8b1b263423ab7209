import { open } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import { isUtf8 } from 'node:buffer'
import { fileTypeFromBuffer, fileTypeFromFile } from 'file-type'
import yauzl from 'yauzl'
import { AppError } from './errors.ts'

export type MediaKind = 'image' | 'video' | 'document' | 'audio'

const megabyte = 1_048_576

/** The most bytes a file of each kind may have. */
export const sizeLimits: Record<MediaKind, number> = {
  image: 5 * megabyte,
  video: 50 * megabyte,
  document: 10 * megabyte,
  audio: 15 * megabyte,
}

const docx = 'application/vnd.openxmlformats-officedocument.wordprocessingml.document'
const xlsx = 'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet'

/** Every type that is taken, and the endings its file names may have; the first is the one that is added to others. */
const types: Record<string, { kind: MediaKind; endings: string[] }> = {
  'image/jpeg': { kind: 'image', endings: ['jpg', 'jpeg'] },
  'image/png': { kind: 'image', endings: ['png'] },
  'image/gif': { kind: 'image', endings: ['gif'] },
  'image/webp': { kind: 'image', endings: ['webp'] },
  'video/mp4': { kind: 'video', endings: ['mp4', 'm4v'] },
  'video/mpeg': { kind: 'video', endings: ['mpeg', 'mpg'] },
  'video/quicktime': { kind: 'video', endings: ['mov', 'qt'] },
  'video/webm': { kind: 'video', endings: ['webm'] },
  'audio/mpeg': { kind: 'audio', endings: ['mp3'] },
  'audio/ogg': { kind: 'audio', endings: ['ogg', 'oga', 'opus'] },
  'audio/wav': { kind: 'audio', endings: ['wav'] },
  'audio/webm': { kind: 'audio', endings: ['webm', 'weba'] },
  'application/pdf': { kind: 'document', endings: ['pdf'] },
  'application/msword': { kind: 'document', endings: ['doc'] },
  'application/vnd.ms-excel': { kind: 'document', endings: ['xls'] },
  [docx]: { kind: 'document', endings: ['docx'] },
  [xlsx]: { kind: 'document', endings: ['xlsx'] },
  'text/plain': { kind: 'document', endings: ['txt', 'csv', 'log', 'md'] },
}

/** Other names of the same types, as file-type and browsers use them. */
const aliases: Record<string, string> = {
  'image/jpg': 'image/jpeg',
  'image/apng': 'image/png',
  'video/x-m4v': 'video/mp4',
  'video/mp1s': 'video/mpeg',
  'video/mp2p': 'video/mpeg',
  'audio/mp3': 'audio/mpeg',
  'audio/opus': 'audio/ogg',
  'audio/wave': 'audio/wav',
  'audio/x-wav': 'audio/wav',
  'audio/vnd.wave': 'audio/wav',
}

/** The kind of a type that is taken; undefined of any other. */
export const kindOf = (mimeType: string): MediaKind | undefined =>
  Object.hasOwn(types, mimeType) ? types[mimeType]!.kind : undefined

/** The name we call a type by, without parameters: `audio/x-wav; rate=1` is `audio/wav`. */
export function canonicalType(mimeType: string): string {
  const bare = mimeType.split(';', 1)[0]!.trim().toLowerCase()
  return Object.hasOwn(aliases, bare) ? aliases[bare]! : bare
}

export const unsupportedType = (what: string) =>
  new AppError(
    415,
    'UNSUPPORTED_MEDIA_TYPE',
    `${what} Taken are jpeg, png, gif, webp; mp4, mpeg, quicktime, webm; pdf, doc, docx, xls, xlsx, txt; mp3, ogg, wav.`,
  )

export const tooLarge = (kind: MediaKind) =>
  new AppError(
    413,
    'FILE_TOO_LARGE',
    `A file of the kind ${kind} may have up to ${sizeLimits[kind] / megabyte} MB.`,
  )

/** So many first bytes tell what a file may become. */
export const headBytes = 4_100

/**
 * The most bytes a file that begins like this may have, judged by its first `headBytes` (or all it has). Throws 415 when it cannot become
 * anything that is taken. What it is tells only the whole file: see detectType().
 */
export async function limitFor(head: Buffer): Promise<{ kind: MediaKind; bytes: number }> {
  const kind = await kindByHead(head)
  if (!kind) throw unsupportedType('The file is of another type.')
  return { kind, bytes: sizeLimits[kind] }
}

async function kindByHead(head: Buffer): Promise<MediaKind | undefined> {
  const found = await fileTypeFromBuffer(head).catch(() => undefined)
  const kind = kindOf(nameOf(found))
  if (kind) return kind
  if (isZip(head) || found?.mime === 'application/x-cfb') return 'document'
  return new TextCheck().accepts(head) ? 'document' : undefined
}

/** Of the layers of MPEG audio only the third is taken; the others are two bytes that much else begins with. */
const nameOf = (found: { mime: string; ext: string } | undefined) =>
  found === undefined || /^mp[12]$/.test(found.ext) ? '' : canonicalType(found.mime)

const isZip = (head: Buffer) => head.subarray(0, 4).equals(Buffer.from('PK\x03\x04'))

/**
 * What a file is, by its bytes alone; `video/webm` also of one that holds only sound. Throws 415 when it is nothing that is taken.
 */
export async function detectType(path: string): Promise<string> {
  const found = nameOf(await fileTypeFromFile(path).catch(() => undefined))
  if (found === 'application/x-cfb') return binaryOfficeType(path)
  if (found === docx || found === xlsx) {
    await checkOfficeZip(path, found === docx ? 'word/document.xml' : 'xl/workbook.xml')
    return found
  }
  if (kindOf(found)) return found
  // Some text begins like something else: a calendar, a contact, "BM …".
  if (await isText(path)) return 'text/plain'
  throw unsupportedType('The file is of another type.')
}

/** Tells text from everything else, piece by piece: UTF-8 without what only binary files hold, and no markup that a browser would run. */
class TextCheck {
  #rest = Buffer.alloc(0)
  #begun = false

  /** Whether it is still text after this piece; at the end it must not stop in the middle of a character. */
  accepts(piece: Buffer, end = false): boolean {
    const bytes = Buffer.concat([this.#rest, piece])
    // A character that is cut in two waits for its other half.
    const cut = end ? bytes.length : wholeCharacters(bytes)
    this.#rest = bytes.subarray(cut)
    const whole = bytes.subarray(0, cut)
    if (!isUtf8(whole) || binaryByte.test(whole.toString('latin1'))) return false
    if (this.#begun || whole.length === 0) return true
    this.#begun = true
    return !markup.test(whole.toString('utf8'))
  }
}

// The "binary data bytes" of the WHATWG MIME sniffing standard.
// eslint-disable-next-line no-control-regex
const binaryByte = /[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]/
/** Begins as XML, SVG or HTML do: also as a text it would be dangerous in the hands of a program that guesses. */
const markup =
  /^[\ufeff\s]*<(!doctype|!--|!entity|\?xml|\?php|%|svg|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|img|meta|link|object|embed|form|math|video|audio|input)(?![a-z0-9@.])/i

function wholeCharacters(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back]!
    if (byte < 0x80) return bytes.length
    if (byte < 0xc0) continue
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2
    return length > back ? bytes.length - back : bytes.length
  }
  return bytes.length
}

async function isText(path: string): Promise<boolean> {
  const check = new TextCheck()
  const file = await open(path, 'r')
  try {
    const chunk = Buffer.alloc(65_536)
    for (;;) {
      const { bytesRead } = await file.read(chunk)
      if (!check.accepts(Buffer.from(chunk.subarray(0, bytesRead)), bytesRead === 0)) return false
      if (bytesRead === 0) return true
    }
  } finally {
    await file.close()
  }
}

/** No document has more; it is what zip bombs are made of. */
const maxEntries = 10_000
const maxUnpacked = 500 * megabyte

/** Reads the list of a zip, never its contents. Throws 415 when it is damaged, a bomb, carries programs, or lacks its main part. */
async function checkOfficeZip(path: string, mainPart: string): Promise<void> {
  let entries = 0
  let unpacked = 0
  let packed = 0
  let found = false
  try {
    const zip = await yauzl.openPromise(path, { strictFileNames: true })
    try {
      for await (const entry of zip.eachEntry()) {
        entries += 1
        unpacked += entry.uncompressedSize
        packed += entry.compressedSize
        if (entries > maxEntries || unpacked > maxUnpacked || packed > zip.fileSize)
          throw new Error('bomb')
        if (/vbaProject\.bin$/i.test(entry.fileName)) throw new Error('program')
        found ||= entry.fileName === mainPart
      }
    } finally {
      zip.close()
    }
  } catch {
    found = false
  }
  if (!found) throw unsupportedType('The document is damaged, or not what it begins like.')
}

/** Word and Excel before 2007 keep a small file system in a file; the names in it say whose it is. */
async function binaryOfficeType(path: string): Promise<string> {
  const file = await open(path, 'r')
  try {
    const names = await compoundNames(file)
    if (names.has('EncryptedPackage')) throw unsupportedType('The document is encrypted.')
    if (names.has('WordDocument')) return 'application/msword'
    if (names.has('Workbook') || names.has('Book')) return 'application/vnd.ms-excel'
  } finally {
    await file.close()
  }
  throw unsupportedType('The document is neither of Word nor of Excel.')
}

/** The names in the directory of a compound file ([MS-CFB]), as far as it can be read. */
async function compoundNames(file: FileHandle): Promise<Set<string>> {
  const names = new Set<string>()
  const header = await readAt(file, 0, 512)
  if (header.length < 512) return names
  const shift = header.readUInt16LE(30)
  if (shift !== 9 && shift !== 12) return names
  const sectorSize = 1 << shift
  const offsetOf = (sector: number) => (sector + 1) * sectorSize
  const perSector = sectorSize / 4

  let sector = header.readUInt32LE(48)
  // A chain that runs in circles ends here too: no directory of a document is longer.
  for (let count = 0; count < 256 && sector <= 0xffff_fff9; count++) {
    const entries = await readAt(file, offsetOf(sector), sectorSize)
    for (let at = 0; at + 128 <= entries.length; at += 128) {
      const length = entries.readUInt16LE(at + 64)
      if (length < 2 || length > 64) continue
      names.add(entries.toString('utf16le', at, at + length - 2))
    }
    // The first 109 sectors of the allocation table stand in the header: enough for 6.8 MB of directory and all before it.
    const tableIndex = Math.floor(sector / perSector)
    if (tableIndex >= 109) break
    const table = header.readUInt32LE(76 + 4 * tableIndex)
    const next = await readAt(file, offsetOf(table) + 4 * (sector % perSector), 4)
    if (next.length < 4) break
    sector = next.readUInt32LE(0)
  }
  return names
}

async function readAt(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, position)
  return buffer.subarray(0, bytesRead)
}

/** Shows a text backwards, or is not seen at all. */
const invisible = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\u2028\u2029]/gu
/** Names Windows keeps for devices, with or without an ending. */
const device = /^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)/i
const maxNameBytes = 200

/**
 * A file name that is harmless everywhere, made of what somebody called the file: no path, nothing invisible, and an ending that fits the
 * type, so that no program is started by opening it. A type that is not one of ours keeps its ending.
 */
export function cleanFilename(given: string, mimeType: string): string {
  const last = given.replaceAll('\\', '/').split('/').at(-1)!
  const visible = last
    .replaceAll(invisible, '')
    .replaceAll(/[<>:"|?*%;]/g, '_')
    .replaceAll(/\s+/g, ' ')
    .replace(/^[.\s]+|[.\s]+$/g, '')
    .replace(device, '_$1')
  const [, name = '', ending = ''] = /^(.*?)(?:\.([^.]{1,10}))?$/su.exec(visible) ?? []
  const endings = Object.hasOwn(types, mimeType) ? types[mimeType]!.endings : undefined
  const fits = endings?.includes(ending.toLowerCase()) ?? ending !== ''
  const stem = fits ? name : visible
  const suffix = fits ? `.${ending}` : endings ? `.${endings[0]}` : ''
  return shorten(stem === '' ? 'file' : stem, maxNameBytes - Buffer.byteLength(suffix)) + suffix
}

/** Cuts a text to so many bytes, at a character. */
function shorten(text: string, bytes: number): string {
  let used = 0
  let kept = ''
  for (const character of text) {
    used += Buffer.byteLength(character)
    if (used > bytes) break
    kept += character
  }
  return kept
}

/** A piece of a text: what was looked for, or what stands around it. Pieces rather than marks in the text: nobody has to trust what customers write. */
export interface Piece {
  text: string
  match: boolean
}

/** A word, as it is compared, and where it stands. */
interface Word {
  word: string
  start: number
  end: number
}

// As search_text() of the database has them.
const mark =
  /[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u065f\u0670\u0640]/u
const alone =
  /[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\u{20000}-\u{3ffff}]/u
const between =
  /[\p{Cc}\ufe00-\ufe0f -/:-@[-`{-~\u00a0-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u0589\u05be\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965\u2000-\u2bff\u3000-\u303f\u{1f000}-\u{1faff}]/u

/** The words of a text as the search compares them: without capitals and accents; characters of scripts that know no blanks each by itself. */
export function wordsOf(text: string): Word[] {
  const words: Word[] = []
  let current: Word | undefined
  let at = 0
  for (const written of text) {
    const even = written < '\u0080' ? written : written.normalize('NFKD')
    for (const char of even.toLowerCase()) {
      if (mark.test(char)) continue
      if (between.test(char)) {
        current = undefined
      } else if (alone.test(char)) {
        words.push({ word: char, start: at, end: at + written.length })
        current = undefined
      } else {
        if (!current) words.push((current = { word: '', start: at, end: at }))
        current.word += char === 'ς' ? 'σ' : char
      }
    }
    at += written.length
    if (current) current.end = at
  }
  return words
}

/** So much of a text is searched. */
const searched = 10_000
const longest = 240
const before = 60

/** The part of a text where the first of these phrases stands, in pieces; the beginning when none does. Cut ends carry an ellipsis. */
export function cutOut(text: string, phrases: { words: string[]; open: boolean }[]): Piece[] {
  const words = wordsOf(text.slice(0, searched))
  const matches: { start: number; end: number }[] = []
  for (let i = 0; i < words.length;) {
    const phrase = phrases.find((candidate) => standsAt(words, i, candidate))
    if (phrase)
      matches.push({ start: words[i]!.start, end: words[i + phrase.words.length - 1]!.end })
    i += phrase?.words.length ?? 1
  }
  const first = matches[0]?.start ?? 0
  const start = text.length <= longest || first <= before ? 0 : borderAt(text, first - before)
  const end = text.length <= start + longest ? text.length : borderAt(text, start + longest)
  const pieces: Piece[] = []
  const add = (piece: string, match: boolean) => {
    if (piece !== '') pieces.push({ text: piece, match })
  }
  add(start > 0 ? '…' : '', false)
  let at = start
  for (const match of matches) {
    if (match.start >= end) break
    add(text.slice(at, match.start), false)
    add(text.slice(match.start, Math.min(match.end, end)), true)
    at = Math.min(match.end, end)
  }
  add(text.slice(at, end), false)
  add(end < text.length ? '…' : '', false)
  return pieces
}

const standsAt = (
  words: Word[],
  at: number,
  { words: phrase, open }: { words: string[]; open: boolean },
) =>
  phrase.every((wanted, i) => {
    const word = words[at + i]?.word
    return open && i === phrase.length - 1 ? word?.startsWith(wanted) : word === wanted
  })

/** A place to cut near `at` that splits no character. */
const borderAt = (text: string, at: number) =>
  /[\udc00-\udfff]/.test(text.charAt(at)) ? at + 1 : at

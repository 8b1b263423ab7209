import {
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import Transport from 'winston-transport'

export interface RotatingFileOptions extends Transport.TransportStreamOptions {
  filename: string
  /** Bytes after which the file is set aside. */
  maxBytes?: number
  /** How many set-aside files are kept. */
  keep?: number
}

const MESSAGE = Symbol.for('message')

/** Tells files apart that one process sets aside within a millisecond. */
let setAside = 0
const serial = () => String(setAside++ % 1_000).padStart(3, '0')

/**
 * A winston transport to a file that is set aside when it grows too large.
 *
 * Every line is one synchronous append: nothing is buffered, so nothing is lost in a burst, at a rotation or in a crash
 * (winston's own File transport drops lines when it rotates under load). Several processes may share the file: appends of
 * one line do not interleave, and set-aside names are unique, so two processes that rotate at once cannot overwrite each other.
 */
export class RotatingFile extends Transport {
  readonly #filename: string
  readonly #maxBytes: number
  readonly #keep: number
  #fd: number | undefined
  #failing = false

  constructor({ filename, maxBytes = 10 * 1_048_576, keep = 10, ...options }: RotatingFileOptions) {
    super(options)
    this.#filename = filename
    this.#maxBytes = maxBytes
    this.#keep = keep
  }

  override log(info: Record<symbol, unknown>, next: () => void): void {
    try {
      this.#append(`${String(info[MESSAGE])}\n`)
      this.#failing = false
    } catch (error) {
      // A full disk must not stop the product; stdout still has the line. Said once, not once a line.
      if (!this.#failing) process.stderr.write(`log file ${this.#filename}: ${String(error)}\n`)
      this.#failing = true
    }
    this.emit('logged', info)
    next()
  }

  override close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd)
    this.#fd = undefined
  }

  #append(line: string): void {
    this.#fd ??= this.#open()
    if (fstatSync(this.#fd).size >= this.#maxBytes) this.#rotate()
    writeSync(this.#fd, line)
  }

  #open(): number {
    mkdirSync(dirname(this.#filename), { recursive: true })
    return openSync(this.#filename, 'a', 0o640)
  }

  #rotate(): void {
    const ours = fstatSync(this.#fd!).ino
    const current = statSync(this.#filename, { throwIfNoEntry: false })?.ino
    // Another process may have set the file aside already: then only follow it.
    if (current === ours) {
      const stamp = new Date().toISOString().replaceAll(/[:.]/g, '-')
      try {
        renameSync(this.#filename, `${this.#filename}.${stamp}.${process.pid}.${serial()}`)
      } catch (error) {
        // Set aside by another process since we looked.
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
      }
      this.#prune()
    }
    closeSync(this.#fd!)
    this.#fd = this.#open()
  }

  #prune(): void {
    const folder = dirname(this.#filename)
    const prefix = `${basename(this.#filename)}.`
    const aside = readdirSync(folder)
      .filter((name) => name.startsWith(prefix))
      .sort()
    for (const name of aside.slice(0, -this.#keep)) rmSync(join(folder, name), { force: true })
  }
}

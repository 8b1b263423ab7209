import type { Readable } from 'node:stream'
import type { ByteRange, ObjectInfo, ObjectStore, PutOptions } from '../object-store.ts'

/** A store whose steps a test can watch, break or hold up. */
export class FaultyStore implements ObjectStore {
  readonly inner: ObjectStore
  beforePut: () => void | Promise<void> = () => {}
  afterPut: () => void | Promise<void> = () => {}
  beforeGet: () => void | Promise<void> = () => {}
  beforeRemove: () => void | Promise<void> = () => {}
  changeSource: (source: Readable) => Readable = (source) => source
  changeResult: (source: Readable) => Readable = (source) => source

  constructor(inner: ObjectStore) {
    this.inner = inner
  }

  heal(): void {
    const nothing = () => {}
    this.beforePut = this.afterPut = this.beforeGet = this.beforeRemove = nothing
    this.changeSource = this.changeResult = (source) => source
  }

  ensureBucket(name: string) {
    return this.inner.ensureBucket(name)
  }

  async put(name: string, key: string, source: Readable, options?: PutOptions): Promise<void> {
    await this.beforePut()
    await this.inner.put(name, key, this.changeSource(source), options)
    await this.afterPut()
  }

  async get(name: string, key: string, range?: ByteRange): Promise<Readable> {
    await this.beforeGet()
    return this.changeResult(await this.inner.get(name, key, range))
  }

  async stat(name: string, key: string): Promise<ObjectInfo | undefined> {
    await this.beforeGet()
    return this.inner.stat(name, key)
  }

  list(name: string, folder?: string) {
    return this.inner.list(name, folder)
  }

  async remove(name: string, keys: string[]): Promise<void> {
    await this.beforeRemove()
    await this.inner.remove(name, keys)
  }
}

import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

export interface Edit {
  file: string
  /** Must be in the built file exactly once. */
  find: string
  replace: string
}

/** A copy of the built product that runs from its own folder: what is built meanwhile does not change it, but `edits` do. */
export async function copyProduct(from: string, to: string, edits: Edit[] = []): Promise<void> {
  await mkdir(to)
  await cp(join(from, 'dist'), join(to, 'dist'), { recursive: true })
  await cp(join(from, 'package.json'), join(to, 'package.json'))
  for (const shared of ['node_modules', 'migrations']) {
    await symlink(join(from, shared), join(to, shared))
  }
  for (const { file, find, replace } of edits) {
    const path = join(to, 'dist', file)
    const text = await readFile(path, 'utf8')
    if (text.split(find).length !== 2) throw new Error(`${file} does not have "${find}" once`)
    await writeFile(
      path,
      text.replace(find, () => replace),
    )
  }
}

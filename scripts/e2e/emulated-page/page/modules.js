/** window.require: the named modules the library reaches into. */

const modules = new Map()
let removed = new Set()

export function define(named) {
  for (const [name, module] of Object.entries(named)) modules.set(name, module)
}

/** These modules are missing, as after a release of WhatsApp that renamed them. */
export function removeModules(names) {
  removed = new Set(names)
}

export function requireModule(name) {
  if (!modules.has(name) || removed.has(name)) throw new Error(`Requiring unknown module "${name}"`)
  return modules.get(name)
}

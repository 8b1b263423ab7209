/** Observable models and collections in the manner of Backbone, as far as the library leans on it. */

const hidden = (object, name, value) =>
  Object.defineProperty(object, name, { value, writable: true, enumerable: false })

export class Emitter {
  constructor() {
    hidden(this, 'handlers', new Map())
  }

  /** `names` may hold several events, separated by spaces. */
  on(names, handler, context) {
    for (const name of names.split(' ')) {
      if (!this.handlers.has(name)) this.handlers.set(name, [])
      this.handlers.get(name).push({ handler, context })
    }
    return this
  }

  once(names, handler, context) {
    const first = (...args) => {
      this.off(names, first)
      handler.apply(context, args)
    }
    return this.on(names, first)
  }

  off(names, handler) {
    for (const name of names.split(' ')) {
      const kept = (this.handlers.get(name) ?? []).filter(
        (entry) => handler && entry.handler !== handler,
      )
      this.handlers.set(name, kept)
    }
    return this
  }

  trigger(name, ...args) {
    for (const { handler, context } of [...(this.handlers.get(name) ?? [])])
      handler.apply(context, args)
    return this
  }

  isHeard(name) {
    return (this.handlers.get(name) ?? []).length > 0
  }
}

export class Model extends Emitter {
  constructor(attributes = {}) {
    super()
    hidden(this, 'attributes', {})
    hidden(this, 'collections', new Set())
    this.set(attributes, { silent: true })
  }

  /** Changes attributes, then tells: `change:name` (model, value, previous) for each, `change` once. */
  set(changes, options = {}) {
    const changed = []
    for (const [name, value] of Object.entries(changes)) {
      const previous = this.attributes[name]
      this.#declare(name)
      if (previous === value) continue
      this.attributes[name] = value
      changed.push([name, value, previous])
    }
    if (options.silent || changed.length === 0) return this
    for (const [name, value, previous] of changed)
      this.trigger(`change:${name}`, this, value, previous)
    return this.trigger('change', this)
  }

  trigger(name, ...args) {
    super.trigger(name, ...args)
    for (const collection of this.collections) collection.trigger(name, ...args)
    return this
  }

  unsafe() {
    return this
  }

  /** A copy without behaviour and without cycles: what may leave the page. */
  serialize() {
    const copy = {}
    for (const [name, value] of Object.entries(this.attributes)) {
      if (typeof value !== 'function') copy[name] = value?.serialize ? value.serialize() : value
    }
    return copy
  }

  toJSON() {
    return this.serialize()
  }

  #declare(name) {
    if (name in this) return
    Object.defineProperty(this, name, {
      enumerable: true,
      configurable: true,
      get: () => this.attributes[name],
      set: (value) => {
        this.set({ [name]: value })
      },
    })
  }
}

export class Collection extends Emitter {
  /** `order` names an attribute to keep the models sorted by. */
  constructor(modelClass = Model, order = undefined) {
    super()
    this.modelClass = modelClass
    this._models = []
    hidden(this, 'order', order)
    hidden(this, 'index', new Map())
  }

  get length() {
    return this._models.length
  }

  get(id) {
    return this.index.get(keyOf(id))
  }

  add(model, options = {}) {
    let place = this._models.length
    while (this.order && place > 0 && this._models[place - 1][this.order] > model[this.order])
      place--
    this._models.splice(place, 0, model)
    this.index.set(keyOf(model.id), model)
    model.collections.add(this)
    if (!options.silent) this.trigger('add', model)
    return model
  }

  /** The model is known by another id from now on. */
  replaceId(before, id) {
    const model = this.get(before)
    this.index.delete(keyOf(before))
    this.index.set(keyOf(id), model)
  }

  remove(model) {
    if (!this.index.delete(keyOf(model.id))) return
    this._models.splice(this._models.indexOf(model), 1)
    this.trigger('remove', model)
    model.collections.delete(this)
  }

  getModelsArray() {
    return [...this._models]
  }
  filter(test) {
    return this._models.filter(test)
  }
  map(change) {
    return this._models.map(change)
  }
  forEach(visit) {
    this._models.forEach(visit)
  }
  async find(id) {
    return this.get(id)
  }
  serialize() {
    return this._models.map((model) => model.serialize())
  }
  toJSON() {
    return this.serialize()
  }
}

const keyOf = (id) => id?._serialized ?? String(id)

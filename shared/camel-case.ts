const cache = new Map<string, string>()

/** `wa_chat_id` → `waChatId`. Column names are few, so each is turned once. */
export function camelCase(name: string): string {
  let camel = cache.get(name)
  if (camel === undefined) {
    camel = name.replaceAll(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
    cache.set(name, camel)
  }
  return camel
}

import { lookup as dnsLookup } from 'node:dns/promises'
import type { LookupAddress } from 'node:dns'
import { isIP } from 'node:net'
import ipaddr from 'ipaddr.js'
import Joi from 'joi'

/** The variable that says whether webhooks may lead into private networks. */
export interface WebhookConfig {
  WEBHOOK_ALLOW_PRIVATE: boolean
}

export const webhookSchema: Joi.PartialSchemaMap<WebhookConfig> = {
  WEBHOOK_ALLOW_PRIVATE: Joi.boolean().truthy('on').falsy('off').default(false),
}

/** The host lies where webhooks must not lead: on this machine, in a private network, or at a cloud's metadata service. */
export class PrivateAddress extends Error {
  readonly code = 'PRIVATE_ADDRESS'

  constructor(host: string) {
    super(`${host} is, or leads to, an address that is not public.`)
    this.name = 'PrivateAddress'
  }
}

export type Lookup = (hostname: string) => Promise<LookupAddress[]>

const everyAddress: Lookup = (hostname) => dnsLookup(hostname, { all: true })

/** Names that are never those of a public host, whatever a resolver makes of them: this machine, its network, a cloud's metadata. */
const innerName = /(^|\.)(localhost|local|internal|home\.arpa)\.?$/i

/** Metadata services at addresses that look public. */
const metadata = ['168.63.129.16']

/** Whether this is an address, and one of the public internet. */
export function isPublicAddress(text: string): boolean {
  if (isIP(text) === 0) return false
  const address = ipaddr.process(text) // an IPv4 address in IPv6 clothes is taken for what it is
  if (address.range() !== 'unicast' || metadata.includes(address.toString())) return false
  // Of IPv6 only what is given out for the public internet; the rest translates, tunnels or is none.
  return !(address instanceof ipaddr.IPv6) || (address.parts[0]! & 0xe000) === 0x2000
}

/** The host of a URL as a name or an address to connect to. */
export const hostOf = ({ hostname }: URL) => hostname.replace(/^\[(.*)\]$/, '$1')

/**
 * Where to connect to for a host, asked once: what is answered is what was looked at. Throws PrivateAddress when any of its addresses is not public (unless
 * `allowPrivate`), and what the resolver throws.
 */
export async function resolveHost(
  host: string,
  allowPrivate: boolean,
  lookup: Lookup = everyAddress,
): Promise<LookupAddress[]> {
  if (!allowPrivate && innerName.test(host)) throw new PrivateAddress(host)
  const version = isIP(host)
  const addresses = version === 0 ? await lookup(host) : [{ address: host, family: version }]
  if (!allowPrivate && !addresses.every(({ address }) => isPublicAddress(address))) {
    throw new PrivateAddress(host)
  }
  return addresses
}

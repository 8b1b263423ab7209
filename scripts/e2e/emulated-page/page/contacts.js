/** Contacts, the register of numbers, and the two names of a person: phone number and LID. */
import { guarded } from './faults.js'
import { createWid, Wid } from './ids.js'
import { Collection, Model } from './models.js'
import { define } from './modules.js'
import { link, me, onConnected } from './session.js'

const lidOfNumber = new Map()
const numberOfLid = new Map()

/** Each is for one kind of address; what WhatsApp's page does when it is asked for another one is an error of whoever asks. */
function getCurrentLid(wid) {
  if (!wid.isLid()) return lidOfNumber.get(String(wid))
  reportError('get-current-lid-called-with-lid')
  return wid
}
function getPhoneNumber(wid) {
  if (!wid.isUser()) throw new Error('WaWebLidPnCache - Invalid get call (not user)')
  if (!wid.isLid()) throw new Error('WaWebLidPnCache - Invalid get call (not lid)')
  return numberOfLid.get(String(wid))
}
/** The page sends its logs to WhatsApp, which sees who drives it in ways no person would. */
const reportError = (kind) => void link.call('signal', { kind }).catch(() => undefined)

const getAlternateUserWid = (wid) => (wid.isLid() ? getPhoneNumber(wid) : getCurrentLid(wid))

export const alternateOf = getAlternateUserWid

class ContactModel extends Model {
  get formattedName() {
    return this.name ?? this.pushname ?? `+${this.id.user}`
  }
  get isContactBlocked() {
    return Blocklist.get(this.id) !== undefined
  }
}

class ContactCollection extends Collection {
  async find(id) {
    return this.gadd(createWid(id))
  }

  /** Gets the contact or adds it. */
  gadd(wid) {
    const phoneNumber = wid.isLid() ? getPhoneNumber(wid) : undefined
    return this.get(wid) ?? this.add(new ContactModel({ id: wid, type: 'in', phoneNumber }))
  }
}

class BusinessProfileCollection extends Collection {
  async find(id) {
    return new Model({ id: createWid(id), profileOptions: undefined })
  }
}

class ProfilePicThumbCollection extends Collection {
  async find(id) {
    return new Model({ id: createWid(id), img: undefined })
  }
}

export const Contact = new ContactCollection(ContactModel)
export const Blocklist = new Collection()
export const BusinessProfile = new BusinessProfileCollection()
export const ProfilePicThumb = new ProfilePicThumbCollection()

/** The person at the phone blocks somebody. */
export const block = (id) => void Blocklist.add(new Model({ id: createWid(id) }))

/** Notes what the server said about a person: `{ wid, pn, lid, name, pushName, isBusiness }`. */
export function learn(person) {
  const [pn, lid] = [createWid(person.pn), createWid(person.lid)]
  lidOfNumber.set(String(pn), lid)
  numberOfLid.set(String(lid), pn)
  if (person.asked) lidOfNumber.set(person.asked, lid)
  const attributes = { isBusiness: person.isBusiness, pushname: person.pushName, name: person.name }
  for (const contact of [Contact.get(pn), Contact.get(lid)]) contact?.set(attributes)
  if (person.name) Contact.gadd(pn).set(attributes)
}

/** A person wrote: it is a contact from now on. */
export function meet(wid, pushname) {
  const contact = Contact.gadd(wid)
  if (pushname) contact.set({ pushname })
}

/** Null for a number that is not on WhatsApp; the wid of the answer may differ from the asked one. */
export const queryWidExists = guarded('queryWidExists', async (wid) => {
  const person = await link.call('exists', { wid: String(wid) })
  if (!person) return null
  learn({ ...person, asked: String(wid) })
  return { wid: createWid(wid.isLid() ? person.lid : person.pn), biz: person.isBusiness }
})

const asUserWidOrThrow = (wid) => {
  const user = createWid(wid)
  if (!user.isUser()) throw new Error('wid error: not a user')
  return user
}

onConnected(({ addressBook }) => addressBook.forEach(learn))

define({
  WAWebWidFactory: {
    createWid,
    createWidFromWidLike: createWid,
    createUserWid: (user, server = 'c.us') => new Wid(user, server),
    asUserWidOrThrow,
  },
  WAWebWidToJid: { widToUserJid: (wid) => wid.toJid(), widToGroupJid: (wid) => wid.toJid() },
  WAWebJidToWid: { userJidToUserWid: createWid },
  WAWebQueryExistsJob: { queryWidExists },
  WAWebApiContact: { getCurrentLid, getPhoneNumber, getAlternateUserWid },
  WAWebLidMigrationUtils: {
    toPn: (wid) => (wid.server === 'lid' ? getPhoneNumber(wid) : wid),
    toLid: (wid) => (wid.server === 'lid' ? wid : getCurrentLid(wid)),
  },
  WAWebContactGetters: {
    getIsMe: ({ id }) => id.equals(me.pn) || id.equals(me.lid),
    getIsUser: ({ id }) => id.isUser(),
    getIsGroup: ({ id }) => id.isGroup(),
    getIsWAContact: ({ id }) => id.isUser(),
    getUserid: ({ id }) => (id.isLid() ? (getPhoneNumber(id)?.user ?? id.user) : id.user),
    getName: ({ name }) => name,
    getShortName: ({ name }) => name?.split(' ')[0],
    getPushname: ({ pushname }) => pushname,
    getVerifiedName: () => undefined,
    getVerifiedLevel: () => undefined,
    getStatusMute: () => false,
    getIsEnterprise: () => false,
  },
  WAWebFrontendContactGetters: { getIsMyContact: ({ name }) => name !== undefined },
  WAWebContactStatusBridge: {
    getStatus: async ({ wid }) => ({ id: wid, status: 'Hey there! I am using WhatsApp.' }),
    setMyStatus: async () => undefined,
  },
  WAWebContactProfilePicThumbBridge: { requestProfilePicFromServer: async () => undefined },
  WAWebFindCommonGroupsContactAction: { findCommonGroups: async () => undefined },
  WAWebBlockContactUtils: { getContactToBlockOnlyUseIfNoAssociatedChat: (contact) => contact },
  WAWebBlockContactAction: {
    blockContact: async ({ contact }) => Blocklist.add(new Model({ id: contact.id })),
    unblockContact: async (contact) => Blocklist.remove(contact),
  },
})

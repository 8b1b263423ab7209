/** Boot: open the profile, ask the instrument for its settings, offer the modules, launch the socket. */
/* global document, location, setTimeout, window */
import { Chat, GroupMetadata } from './chats.js'
import { block, Blocklist, BusinessProfile, Contact, ProfilePicThumb } from './contacts.js'
import { decode } from './encoding.js'
import { setFaults } from './faults.js'
import { Control } from './link.js'
import { Msg } from './messages.js'
import { Collection, Emitter } from './models.js'
import { define, removeModules, requireModule } from './modules.js'
import { loadKeys } from './profile.js'
import { Reactions } from './reactions.js'
import { enterState, launch, onEvent, resync } from './session.js'
import './sending.js'
import './text.js'
import { vary } from './variations.js'

const WAWebCallCollection = Object.assign(new Emitter(), { calls: new Map() })
// Through the map, because that is where the library listens.
onEvent('call', ({ call }) => void WAWebCallCollection.calls.set(call.id, decode(call)))

const VERSION = '2.3000.1047780587'

define({
  WAWebCollections: {
    Msg,
    Chat,
    Contact,
    GroupMetadata,
    Blocklist,
    BusinessProfile,
    ProfilePicThumb,
    Reactions,
    Label: new Collection(),
    WAWebNewsletterCollection: new Collection(),
  },
  WAWebCallCollection,
})

/** What the instrument may do in the page. Navigation answers first, then goes. */
const soon = (act) => void setTimeout(act, 10)
const commands = {
  setFaults,
  enterState,
  resync,
  block,
  navigate: (url) => soon(() => (location.href = url)),
  reload: () => soon(() => location.reload()),
  addIframe: () =>
    void document.body.append(Object.assign(document.createElement('iframe'), { src: '/iframe' })),
}

const keys = await loadKeys()
const control = new Control(commands)
const settings = await control.open(keys.noise)
setFaults(settings.faults)
removeModules(settings.removedModules)
window.require = requireModule
window.Debug = { VERSION }
vary(settings.variations)
launch(keys, settings, ({ noise }) => control.rename(noise))

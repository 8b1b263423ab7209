import t from 'tap'
import { findBrowser } from '../../wa-worker/browser.ts'
import { engineContract } from '../../wa-worker/test/engine-contract.ts'
import { nextEvent } from '../../wa-worker/test/waiting.ts'
import { webjsRig } from './webjs-rig.ts'

const browser = findBrowser(process.env['PUPPETEER_EXECUTABLE_PATH'])

await t.test(
  'the engine contract holds on a page that does otherwise what the library leaves open',
  { skip: 'missing' in browser && browser.missing },
  (t) =>
    engineContract(t, (t) =>
      webjsRig(t, [
        'serializesKeys',
        'hidesMediaId',
        'downloadsAnyKind',
        'opensKnownChatsOnly',
        'neverResends',
        'hidesBlocklist',
        'looksUpStrictly',
        'hidesAccount',
        'downloadsBlobs',
        'listsMembers',
        'namesByGetter',
        'chatsWithoutTime',
        'quotesByModule',
        'repliesByMessage',
        'revokesUnderAnotherId',
        'isOlder',
        'unpairsFirst',
        'answersLogout',
      ]),
    ),
)

await t.test(
  'a message of ours is known in a chat whose other address the page has forgotten',
  { skip: 'missing' in browser && browser.missing },
  async (t) => {
    const rig = await webjsRig(t, ['chatsByLid'])
    const start = async () => {
      const engine = rig.createEngine()
      t.teardown(() => engine.stop())
      const ready = nextEvent(engine, 'ready')
      engine.once('qr', ({ value }) => void rig.scan(engine, value))
      await engine.start()
      await ready
      return engine
    }
    const content = { type: 'text' as const, body: 'once' }
    const message = { chatId: rig.customer, keyId: '3EB0ONCE', content }

    const first = await start()
    const read = nextEvent(first, 'ack', ({ ack }) => ack === 3)
    const { waMessageId } = await first.send(message)
    t.match(waMessageId, /@lid_3EB0ONCE$/)
    await read
    await first.stop()

    const second = await start()
    t.match(await second.send(message), { waMessageId, ack: 3 }, 'it is not sent again')
    t.equal(rig.transmissions(second, message.keyId), 1)
  },
)

import Joi from 'joi'
import { numberOf, parseRecipient, recipientFault } from '../shared/wa-id.ts'

/** A recipient as people write one, and of which sort it must be. Read as the WhatsApp address. */
const recipient = (what: string, fits = /@/) =>
  Joi.string()
    .max(64)
    .custom((value: string) => {
      const waId = parseRecipient(value)
      if (waId === undefined) throw new Error(`must be ${what}: ${recipientFault(value)}`)
      if (!fits.test(waId)) throw new Error(`must be ${what}`)
      return waId
    })

const aNumber = 'a phone number with its country code'

/** A person or a group. */
export const anybody = recipient(`${aNumber}, or a WhatsApp address`)
/** No group. */
export const person = recipient(`${aNumber}, or a person's WhatsApp address`, /@(c\.us|lid)$/)
/** A phone number, read as its WhatsApp address. */
export const phone = recipient(aNumber, /@c\.us$/)
/** A phone number, read as its digits. */
export const phoneDigits = phone.custom(numberOf)

import nodemailer from 'nodemailer'
import type { Logger } from '../shared/logger.ts'

export interface Mail {
  to: string
  subject: string
  text: string
}

/** Sends e-mail beside the requests that ask for it. */
export interface Mailer {
  /** Whether there is a server to send with. */
  readonly enabled: boolean
  /** Sends, not waiting for it: how long that takes must not tell who has an account. A failure is logged. */
  send(mail: Mail): void
  /** Waits for what is under way. */
  close(): Promise<void>
}

/** What sends e-mails: by SMTP where a server is set, else not at all. */
export function createMailer(
  { SMTP_URL: url, MAIL_FROM: from }: { SMTP_URL?: string; MAIL_FROM: string },
  log: Logger,
): Mailer {
  if (url === undefined) return { enabled: false, send: () => {}, close: async () => {} }
  const transport = nodemailer.createTransport({
    url,
    connectionTimeout: 10_000,
    greetingTimeout: 10_000,
    socketTimeout: 20_000,
    disableFileAccess: true,
    disableUrlAccess: true,
  })
  const sending = new Set<Promise<void>>()
  return {
    enabled: true,
    send(mail) {
      const attempt = transport.sendMail({ from, ...mail }).then(
        () => log.info('e-mail sent', { subject: mail.subject }),
        (error: unknown) => log.error('e-mail not sent', { subject: mail.subject, error }),
      )
      const done = attempt.then(() => void sending.delete(done))
      sending.add(done)
    },
    async close() {
      await Promise.all(sending)
      transport.close()
    },
  }
}

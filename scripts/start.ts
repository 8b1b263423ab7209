/** `npm start` */
import { runProduct } from './product.ts'

await runProduct(async (url) => {
  process.stdout.write(nextSteps(url))
})

function nextSteps(url: string): string {
  return `
  Awfar is running.

    API            ${url}
    Documentation  ${url}/documentation

  1. Create an account, and keep the accessToken of the answer:
     curl -s ${url}/api/auth/register -H 'content-type: application/json' \\
       -d '{"email":"you@example.com","password":"a long passphrase","fullName":"Your Name"}'
     TOKEN=<accessToken>

  2. Create a WhatsApp session, and keep its id:
     curl -s ${url}/api/whatsapp/sessions -H "authorization: Bearer $TOKEN" \\
       -H 'content-type: application/json' -d '{"name":"main"}'
     SESSION=<id>

  3. Get its QR code, there once the browser is up, and scan it with WhatsApp (Settings, Linked devices):
     curl -sf --retry 30 --retry-delay 1 --retry-all-errors -H "authorization: Bearer $TOKEN" \\
       -o qr.png "${url}/api/whatsapp/sessions/$SESSION/qr?format=png"

  Ctrl-C ends everything.

`
}

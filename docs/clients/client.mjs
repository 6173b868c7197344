// A user of a mesh in sixty lines, written from protocol.md alone: node client.mjs NAME PORT SEED_HOST SEED_PORT
// It prints what is sent to it. Its keys stay in NAME.keys, its messages in NAME.inbox: keep them.
import { appendFileSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { connect } from 'node:net'
import { createInterface } from 'node:readline'
import { open, ownKeys, seal, signature, verified } from './crypto.mjs'
const [NAME, PORT, SEED_HOST, SEED_PORT] = process.argv.slice(2), INBOX = `${NAME}.inbox`
const BODY_BYTES_MAX = 4194304, PING_MS = 10_000, AGAIN_MS = 1000, DOMAIN = 'meshproto record 1\n'
const [own, mail] = ownKeys(`${NAME}.keys`), uris = [`http://127.0.0.1:${PORT}`]
const kept = new Set(readFileSync(INBOX, { encoding: 'utf8', flag: 'a+' }).match(/^[^\t]+(?=\t.+\t$)/gm)) // whole lines
let seed, asked = 0, waiting = new Map() // for the seed's answers, by their ids
function ask(method, params) { // the seed, which answers in any order
  seed.write(JSON.stringify({ jsonrpc: '2.0', id: ++asked, method, params }) + '\n')
  return new Promise((resolve) => waiting.set(asked, resolve))
}
async function register() {
  const record = JSON.stringify({ name: NAME, uris, key: own.x, mail: mail.x, seq: Date.now() })
  const { result, error } = await ask('register', { record, sig: signature(own, DOMAIN + record) })
  console.log(result ? `${NAME} is registered with ${result.seed}` : error?.message ?? 'the seed is gone')
}
function join() { // and again: who is registered is online as long as this connection lives, and pings
  seed = connect(SEED_PORT, SEED_HOST, register)
  const take = (answer) => { waiting.get(answer.id)?.(answer); waiting.delete(answer.id) }
  createInterface({ input: seed }).on('line', (line) => take(JSON.parse(line))).on('error', console.error)
  const pings = setInterval(() => ask('ping'), PING_MS)
  seed.on('close', () => { clearInterval(pings); waiting.forEach((_, id) => take({ id })); setTimeout(join, AGAIN_MS) })
}
function demand(holds, status, title) { if (!holds) throw Object.assign(new Error(title), { status }) }
async function deliver({ sender, to, box }) {
  const { name, key, mail: theirs } = JSON.parse(sender.record)
  demand(verified(key, DOMAIN + sender.record, sender.sig), 403, 'bad signature')
  demand(to === mail.x, 421, 'not for this node')
  const batch = JSON.parse(open(mail, theirs, box))
  demand(batch?.sender === key, 403, 'Forbidden')
  demand(batch.recipient === own.x, 421, 'not for this node')
  const { result } = await ask('lookup', { name })
  demand(result, 503, 'unavailable')
  demand(JSON.parse(result.record).key === key, 403, 'not the owner of the name')
  for (const { id, message } of batch.letters) {
    const once = `${key} ${JSON.stringify(id)}`, shown = JSON.stringify(message)
    if (kept.has(once)) continue
    appendFileSync(INBOX, `\n${once}\t${shown}\t`, { flush: true })
    kept.add(once)
    console.log(`${name}: ${shown}`)
  }
  const receipt = { token: batch.token, ids: batch.letters.map(({ id }) => id), refused: {} }
  return { box: seal(mail, theirs, JSON.stringify(receipt)) }
}
createServer(async (request, response) => {
  try {
    demand(request.method + request.url === 'POST/deliver', 404, 'Not Found')
    let body = ''
    for await (const chunk of request) demand((body += chunk).length <= BODY_BYTES_MAX, 413, 'too large')
    response.end(JSON.stringify(await deliver(JSON.parse(body))))
  } catch ({ status, message }) {
    response.writeHead(status ?? 400, { 'Content-Type': 'application/problem+json' })
    response.end(JSON.stringify({ title: status ? message : 'bad params', status: status ?? 400, detail: message }))
  }
}).listen(PORT, '127.0.0.1', join)

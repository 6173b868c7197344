// The cryptography of client.mjs: its keys, its signatures, and the NaCl box (libsodium's crypto_box_easy), which
// node:crypto lacks: X25519, XSalsa20, Poly1305 (Bernstein 2005, 2006, 2011). Keys of others are as a record has them.
import { createPrivateKey, createPublicKey, diffieHellman, generateKeyPairSync, randomBytes, sign, timingSafeEqual,
  verify } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'

/** The keys in a file, which is made if it is not there. `x`: the public one, as a record has it. */
export function ownKeys(file) {
  const made = (kind) => generateKeyPairSync(kind).privateKey.export({ format: 'jwk' })
  const text = () => JSON.stringify(['ed25519', 'x25519'].map(made))
  if (!existsSync(file)) writeFileSync(file, text(), { mode: 0o600, flush: true })
  return JSON.parse(readFileSync(file)).map((key) => ({ x: key.x, own: createPrivateKey({ key, format: 'jwk' }) }))
}

const publicKey = (curve, x) => createPublicKey({ key: { kty: 'OKP', crv: curve, x }, format: 'jwk' })
export const signature = (key, text) => sign(null, Buffer.from(text), key.own).toString('base64url')
export const verified = (theirKey, text, signed) =>
  verify(null, Buffer.from(text), publicKey('Ed25519', theirKey), Buffer.from(signed, 'base64url'))

const QUARTERS = [ // the words of the state that are mixed with each other: the columns, then the rows
  [0, 4, 8, 12], [5, 9, 13, 1], [10, 14, 2, 6], [15, 3, 7, 11],
  [0, 1, 2, 3], [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]]
const HSALSA20 = [0, 5, 10, 15, 6, 7, 8, 9] // those which are the result
const words = (bytes) => new Uint32Array(Uint8Array.from(bytes).buffer) // on little-endian machines
const number = (bytes) => BigInt('0x' + Buffer.from(bytes).reverse().toString('hex'))
const SIGMA = words(Buffer.from('expand 32-byte k'))

function salsa20(key, input, picked) {
  const start = [SIGMA[0], ...key.slice(0, 4), SIGMA[1], ...input, SIGMA[2], ...key.slice(4), SIGMA[3]]
  const x = Uint32Array.from(start)
  const mix = (to, a, b, left) => { x[to] ^= ((x[a] + x[b]) << left) | ((x[a] + x[b]) >>> (32 - left)) }
  for (let round = 0; round < 20; round += 2)
    for (const [a, b, c, d] of QUARTERS) { mix(b, a, d, 7); mix(c, b, a, 9); mix(d, c, b, 13); mix(a, d, c, 18) }
  return picked ? picked.map((at) => x[at]) : x.map((word, at) => word + start[at])
}

function poly1305(key, text) {
  const r = number(key.subarray(0, 16)) & 0x0ffffffc0ffffffc0ffffffc0fffffffn
  let sum = 0n
  for (let at = 0; at < text.length; at += 16)
    sum = (sum + number([...text.subarray(at, at + 16), 1])) * r % (2n ** 130n - 5n)
  return Buffer.from(((sum + number(key.subarray(16))) % 2n ** 128n).toString(16).padStart(32, '0'), 'hex').reverse()
}

function keyOf(ownKey, theirKey) {
  const shared = diffieHellman({ privateKey: ownKey.own, publicKey: publicKey('X25519', theirKey) })
  return salsa20(words(shared), [0, 0, 0, 0], HSALSA20)
}

function xsalsa20(key, nonce, text) { // the first 32 bytes of the stream are Poly1305's key
  const inner = salsa20(key, words(nonce.subarray(0, 16)), HSALSA20), rest = words(nonce.subarray(16))
  const blocks = Array.from({ length: Math.ceil((32 + text.length) / 64) }, (_, at) => salsa20(inner, [...rest, at, 0]))
  const stream = Buffer.concat(blocks.map((block) => Buffer.from(block.buffer)))
  return [stream.subarray(0, 32), text.map((byte, at) => byte ^ stream[32 + at])]
}

/** The box as `base64url`: nonce, authenticator, ciphertext. */
export function seal(ownKey, theirKey, text) {
  const nonce = randomBytes(24), [macKey, sealed] = xsalsa20(keyOf(ownKey, theirKey), nonce, Buffer.from(text))
  return Buffer.concat([nonce, poly1305(macKey, sealed), sealed]).toString('base64url')
}

/** What is in it, as text; null where it was not sealed between these two. */
export function open(ownKey, theirKey, box) {
  const [nonce, mac, sealed] = [[0, 24], [24, 40], [40]].map((part) => Buffer.from(box, 'base64url').subarray(...part))
  const [macKey, text] = xsalsa20(keyOf(ownKey, theirKey), nonce, sealed)
  return mac.length === 16 && timingSafeEqual(mac, poly1305(macKey, sealed)) ? text.toString() : null
}

// The limits of the bundle, in bytes as gzip sends them.
import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'

const KB = 1000
const LIMITS = { entry: 90 * KB, css: 12 * KB, js: 300 * KB, bytes: 1500 * KB, files: 25 }

export function checkSize(dist) {
  const files = readdirSync(dist, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => ({ name: entry.name, bytes: readFileSync(join(entry.parentPath, entry.name)) }))
  const sent = (wanted) => files.filter(({ name }) => wanted(name)).reduce((sum, { bytes }) => sum + gzipSync(bytes).length, 0)
  const found = {
    entry: sent((name) => name === 'app.js'),
    css: sent((name) => name === 'app.css'),
    js: sent((name) => name.endsWith('.js')),
    bytes: files.reduce((sum, { bytes }) => sum + bytes.length, 0),
    files: files.length,
  }
  const over = Object.keys(LIMITS).filter((name) => found[name] > LIMITS[name])
  console.log(Object.entries(found).map(([name, value]) => `${name} ${value} of ${LIMITS[name]}`).join(', '))
  if (over.length) throw new Error(`the bundle is over its limit of ${over.join(', ')}`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  checkSize(join(dirname(fileURLToPath(import.meta.url)), '../../src/limner/studio/dist'))
}

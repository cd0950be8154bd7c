// The digest of everything that the bundle is built from: `sha256  path`, a line each, sorted.
// tests/unit/test_studio_bundle.py computes the same without Node.
import { createHash } from 'node:crypto'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

const ROOTS = ['src', 'public', 'scripts']
const FILES = ['index.html', 'package.json', 'package-lock.json', 'svelte.config.js', 'tsconfig.json', 'vite.config.ts']
const isSource = (path) => !/\.test\.ts$|(^|\/)api\.types\.ts$/.test(path)

export function sources(web) {
  const inside = (folder) =>
    readdirSync(join(web, folder), { withFileTypes: true, recursive: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(web.length + 1))
  const paths = [...FILES, ...ROOTS.flatMap(inside)].filter(isSource).sort()
  return paths.map((path) => `${sha256(readFileSync(join(web, path)))}  ${path}\n`).join('')
}

function sha256(bytes) {
  return createHash('sha256').update(bytes).digest('hex')
}

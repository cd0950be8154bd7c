// Writes what the bundle was built from beside it, and fails where the bundle is over its limits.
import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { checkSize } from './size.js'
import { sources } from './sources.js'

const web = dirname(dirname(fileURLToPath(import.meta.url)))
const dist = join(web, '../src/limner/studio/dist')
writeFileSync(join(dist, 'SOURCES.sha256'), sources(web))
checkSize(dist)

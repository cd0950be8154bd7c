import { svelte } from '@sveltejs/vite-plugin-svelte'
import type { Plugin } from 'vite'
import { defineConfig } from 'vitest/config'
import { shell } from './src/i18n/en/shell.ts'

/** What the page shows and loads before the script runs: the names of the rail, and the screen that comes first. */
function firstPaint(): Plugin {
  const names = (['create', 'history', 'queue'] as const).map((screen) => `<span>${shell.screens[screen]}</span>`)
  return {
    name: 'first-paint',
    transformIndexHtml: (html) => ({
      html: html.replace('<!-- frame -->', `<div class="frame" aria-hidden="true">${names.join('')}</div>`),
      tags: [{ tag: 'link', attrs: { rel: 'modulepreload', href: './assets/create.js' }, injectTo: 'head' }],
    }),
    apply: 'build',
  }
}

// The bundle is committed, so its names have no hashes and two builds give the same bytes. The server mounts
// assets/ under an address that holds a digest of the whole bundle.
export default defineConfig({
  base: './',
  plugins: [svelte(), firstPaint()],
  // As the server wants it: the Host header that the browser's Origin names.
  server: { proxy: { '/api': { target: 'http://127.0.0.1:8188', changeOrigin: false } } },
  build: {
    outDir: '../src/limner/studio/dist',
    emptyOutDir: true,
    target: ['chrome123', 'firefox121', 'safari17.5'],
    cssCodeSplit: false,
    assetsInlineLimit: 0,
    reportCompressedSize: false,
    modulePreload: { polyfill: false },
    rolldownOptions: {
      output: {
        entryFileNames: 'assets/[name].js',
        chunkFileNames: 'assets/[name].js',
        assetFileNames: ({ names }) => (names.some((name) => name.endsWith('.css')) ? 'assets/app.css' : 'assets/[name][extname]'),
        // One file for each folder of screens/, and one for all that they share.
        codeSplitting: {
          groups: [
            { name: 'app', test: /[\\/](node_modules[\\/](svelte|esm-env|clsx|openapi-fetch)|src[\\/](lib|ui|i18n|shell|App|main))\b/ },
            { debugName: 'screen', name: (id) => /[\\/]src[\\/]screens[\\/](\w+)[\\/]/.exec(id)?.[1] ?? null },
          ],
        },
      },
    },
  },
  test: { include: ['src/**/*.test.ts'], environment: 'node' },
})

import { afterEach, expect, test, vi } from 'vitest'
import { send } from './api'

afterEach(() => vi.unstubAllGlobals())

test('an answer that breaks off says that the server cannot be reached', async () => {
  const body = new ReadableStream({ start: (stream) => stream.error(new TypeError('network error')) })
  vi.stubGlobal('fetch', async () => new Response(body, { status: 200 }))
  await expect(send('POST', '/api/v1/uploads', new Blob(['x']))).rejects.toMatchObject({ code: 'unreachable' })
})

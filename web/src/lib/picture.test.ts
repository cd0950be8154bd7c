import { describe, expect, it } from 'vitest'
import type { Image } from './api'
import { chosenOf, keepsPixels, refined, requestOf, settingsThatDiffer, surroundingsThatDiffer } from './picture'

const picture = (request: object, environment: object = {}): Image =>
  ({ record: { request: { schema_version: '1.1', num_images: 4, ...request }, environment } }) as unknown as Image

describe('the record of a picture', () => {
  it('says what was asked for', () => {
    expect(requestOf(picture({ prompt: 'x', negative_prompt: null, loras: [] }))).toEqual({ prompt: 'x' })
  })

  it('says what was chosen beyond the defaults', () => {
    const request = requestOf(picture({ prompt: 'x', seed: 1, steps: 20, guidance_scale: 4, width: 512, height: 512 }))
    const defaults = { steps: 20, guidance_scale: 7.5, width: 512, height: 512 }
    expect(chosenOf(request, defaults)).toEqual({ prompt: 'x', seed: 1, guidance_scale: 4, width: 512, height: 512 })
  })

  it('says in what pictures differ, and no more', () => {
    const a = picture({ prompt: 'x', steps: 20, seed: 1, loras: [] }, { device: 'cpu', torch: '2' })
    const b = picture({ prompt: 'x', steps: 30, seed: 1, tiling: 'x' }, { device: 'cuda', torch: '2' })
    expect(settingsThatDiffer([a, b])).toEqual([
      { path: ['request', 'steps'], values: [20, 30] },
      { path: ['request', 'tiling'], values: [null, 'x'] },
    ])
    expect(surroundingsThatDiffer([a, b])).toEqual([{ path: ['environment', 'device'], values: ['cpu', 'cuda'] }])
    expect(settingsThatDiffer([a, a])).toEqual([])
  })
})

it('a picture is refined by a second pass at twice the size', () => {
  expect(refined({ prompt: 'a boat', seed: 3, num_images: 4 })).toEqual({ prompt: 'a boat', seed: 3, num_images: 1, hires_scale: 2 })
  expect(refined({ hires_scale: 1.5 })).toMatchObject({ hires_scale: 3 })
})

it('a second pass of a given size is refined to twice that size', () => {
  expect(refined({ hires_width: 256 })).toEqual({ num_images: 1, hires_width: 512, hires_height: undefined })
})

it('a picture that keeps pixels of another one is refined from its own pixels', () => {
  const request = { prompt: 'a boat', image: 'sha256:before', mask: 'sha256:mask', mask_blur: 8, extend: [0, 0, 0, 0] as [number, number, number, number], strength: 0.8 }
  expect(keepsPixels(request)).toBe(true)
  expect(keepsPixels({ ...request, mask: null })).toBe(false)
  expect(keepsPixels({ image: 'sha256:before', extend: [0, 16, 0, 0] })).toBe(true)
  expect(refined(request, { reference: 'sha256:made', width: 128, height: 100, steps: 20 })).toEqual({
    prompt: 'a boat',
    image: 'sha256:made',
    strength: 0.4,
    width: 256,
    height: 200,
    num_images: 1,
  })
  expect(refined(request, { reference: 'sha256:made', width: 128, height: 100, steps: 2 })).toMatchObject({ strength: 0.5 })
})

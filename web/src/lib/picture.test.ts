import { describe, expect, it } from 'vitest'
import type { Image } from './api'
import { chosenOf, requestOf, settingsThatDiffer, surroundingsThatDiffer } from './picture'

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

import { describe, expect, it } from 'vitest'
import { differing, matches, reach, settingsOf, shownValue } from './schema'
import type { RequestSchema } from './state/models.svelte'

const schema: RequestSchema = {
  properties: {
    schema_version: { type: 'string', default: '1.1' },
    steps: { anyOf: [{ type: 'integer', minimum: 1, maximum: 1000 }, { type: 'null' }], default: null, group: 'Sampling', title: 'Steps', also: ['num_inference_steps'] },
    strength: { anyOf: [{ type: 'number', exclusiveMinimum: 0, maximum: 1 }, { type: 'null' }], group: 'Image', title: 'Strength' },
    sampler: { anyOf: [{ type: 'string', enum: ['euler', 'ddim'] }, { type: 'null' }], group: 'Sampling', title: 'Sampler' },
    seed: { anyOf: [{ type: 'integer', minimum: 0, maximum: 9007199254740991 }, { type: 'null' }], group: 'Image', title: 'Seed' },
    image: { anyOf: [{ type: 'string', maxLength: 67108864 }, { type: 'null' }], group: 'Image', title: 'Image' },
    extend: { type: 'array', prefixItems: [{ type: 'integer' }, { type: 'integer' }], parts: ['left', 'top'], default: [0, 0], group: 'Image', title: 'Extend', unit: 'pixels' },
    styles: { type: 'array', items: { type: 'string' }, default: [], group: 'Prompt', title: 'Styles' },
    controls: { type: 'array', items: { $ref: '#/$defs/Control' }, default: [], group: 'Control', title: 'Controls' },
    exact: { type: 'boolean', default: false, group: 'Speed', title: 'Exact' },
  },
}
const settings = settingsOf(schema)
const one = (name: string) => settings.find((setting) => setting.name === name)!

describe('settings from the schema', () => {
  it('has a control for each kind of field', () => {
    expect(Object.fromEntries(settings.map(({ name, control }) => [name, control]))).toEqual({
      steps: 'slider',
      strength: 'slider',
      sampler: 'choice',
      seed: 'number',
      image: 'file',
      extend: 'parts',
      styles: 'words',
      controls: 'json',
      exact: 'switch',
    })
  })

  it('ends sliders where numbers are of use', () => {
    expect(reach(one('steps'), 20)).toBe(100)
    expect(reach(one('strength'), 0.75)).toBe(1)
  })

  it('tells what differs from the defaults', () => {
    const defaults = { steps: 20, sampler: 'euler', extend: [0, 0], exact: false, styles: [] }
    const request = { steps: 20, sampler: 'ddim' as const, extend: [0, 8], exact: false, seed: 0, styles: [] }
    expect(differing(request as never, defaults, settings).map(({ name }) => name)).toEqual(['sampler', 'seed', 'extend'])
    expect(shownValue([0, 8], one('extend'))).toBe('0, 8')
  })

  it('is searched by the names of other programs, too', () => {
    expect(matches(one('steps'), 'inference')).toBe(true)
    expect(matches(one('steps'), 'sampling st')).toBe(true)
    expect(matches(one('steps'), 'seed')).toBe(false)
  })
})

import { expect, it } from 'vitest'
import { labelOf, textOf } from './values'

it('values read as people write them', () => {
  expect(textOf(7.5)).toBe('7.5')
  expect(textOf(false)).toBe('false')
  expect(textOf(null)).toBe('–')
  expect(textOf([{ name: 'ink', weight: 0.8, text_weight: null }, { name: 'wash' }])).toBe('ink 0.8, wash')
  expect(textOf({ class_type: 'KSampler', inputs: { seed: 3 } })).toBe('class_type: KSampler, inputs: seed: 3')
})

it('fields have names for people', () => {
  expect(labelOf('guidance_scale')).toBe('Guidance scale')
})

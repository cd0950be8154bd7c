import { expect, it } from 'vitest'
import type { Model } from '../../lib/api'
import { filtered, folderOf, tally, withModel } from './shelf'

const model = (name: string, more: Partial<Model> = {}): Model =>
  ({ kind: 'lora', name, family: 'sd1', aliases: [], trigger_words: [], ...more }) as Model
const all = [
  model('styles/ink/wash', { trigger_words: ['wet brush'] }),
  model('styles/neon', { family: 'xl' }),
  model('faces', { sha256: 'ab12' }),
  model('org/base', { kind: 'checkpoint' }),
]
const none = { kind: '', family: '', folder: '', words: '' }
const names = (more: Partial<typeof none>) => filtered(all, { ...none, ...more }).map(({ name }) => name)

it('models are filtered by kind, family, folder with what is below it, and words in any order', () => {
  expect(names({})).toHaveLength(4)
  expect(names({ kind: 'checkpoint' })).toEqual(['org/base'])
  expect(names({ family: 'xl' })).toEqual(['styles/neon'])
  expect(names({ folder: 'styles' })).toEqual(['styles/ink/wash', 'styles/neon'])
  expect(names({ folder: 'styles/ink' })).toEqual(['styles/ink/wash'])
  expect(names({ words: 'BRUSH ink' })).toEqual(['styles/ink/wash'])
  expect(names({ words: 'ab12' })).toEqual(['faces'])
})

it('folders are counted, and a checkpoint of the hub has none', () => {
  expect(tally(all, folderOf)).toEqual([
    ['styles', 1],
    ['styles/ink', 1],
  ])
})

it('a LoRA comes into a prompt with the trigger words that it lacks', () => {
  const lora = { kind: 'lora' as const, name: 'ink', trigger_words: ['wet brush', 'paper'] }
  expect(withModel('a boat on paper, ', lora)).toBe('a boat on paper, <lora:ink:1>, wet brush')
  expect(withModel('', lora)).toBe('<lora:ink:1>, wet brush, paper')
  expect(withModel('a boat', { kind: 'embedding', name: 'bad/hands', trigger_words: [] })).toBe('a boat, hands')
})

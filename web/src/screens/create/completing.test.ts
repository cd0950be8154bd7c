import { describe, expect, it } from 'vitest'
import type { Edit } from '../../lib/edits'
import { begunAt, removing, taking, type Completion } from './completing'

const after = (text: string, edit: Edit) => text.slice(0, edit.start) + edit.replacement + text.slice(edit.end)
const ink: Completion = { kind: 'lora', name: 'ink', insert: '<lora:ink:1>', trigger_words: ['ink style', 'drawn'], detail: '', thumbnail: null, family: '' }

describe('completion', () => {
  it.each([
    ['a red bo', 'bo', undefined],
    ['a red <lo', 'lo', ['lora']],
    ['a red <lora:in', 'in', ['lora']],
    ['by __ani', 'ani', ['wildcard']],
  ])('finds what is begun in %j', (text, query, kinds) => {
    const begun = begunAt(text, text.length)!
    expect(begun.query).toBe(query)
    if (kinds) expect(begun.kinds).toEqual(kinds)
  })

  it('finds nothing after a single letter, a closed tag, and inside of a word', () => {
    expect(begunAt('a r', 3)).toBeUndefined()
    expect(begunAt('<lora:ink:1>', 12)).toBeUndefined()
    expect(begunAt('boat', 2)).toBeUndefined()
  })

  it('brings a trigger word along once, and takes both out again', () => {
    const text = 'a boat, <in'
    const taken = after(text, taking(text, begunAt(text, text.length)!, ink))
    expect(taken).toBe('a boat, <lora:ink:1>, ink style')
    const again = 'ink style, <in'
    expect(after(again, taking(again, begunAt(again, again.length)!, ink))).toBe('ink style, <lora:ink:1>')
    expect(after(taken, removing(taken, '<lora:ink:1>', ink.trigger_words))).toBe('a boat')
  })

  it('leaves words that are part of a phrase', () => {
    const text = 'a hand drawn boat <lora:ink:1>, Ink Style, sea\nred'
    expect(after(text, removing(text, '<lora:ink:1>', ink.trigger_words))).toBe('a hand drawn boat, sea\nred')
  })
})

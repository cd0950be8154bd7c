import { describe, expect, it } from 'vitest'
import { marksOf, moved, pieces, type Analysis } from './highlight'

const token = (start: number, end: number, weight: number) => ({ start, end, weight, text: '', id: 1, chunk: 0 })
const name = (start: number, end: number, known: boolean) => ({ start, end, known, kind: 'lora', name: 'x', trigger_words: [] })
const analysis = (tokens: object[], names: object[] = []): Analysis =>
  ({ names, steps: [{ first: 1, last: 20, parts: [{ tokens }] }] }) as unknown as Analysis

describe('how a prompt is coloured', () => {
  it('marks weights and names, and leaves the rest plain', () => {
    const text = 'a (red boat:1.2) <lora:ink> sea'
    const marks = marksOf(text, analysis([token(0, 1, 1), token(3, 6, 1.2), token(7, 11, 1.2), token(28, 31, 0.9)], [name(17, 27, false)]))
    expect(pieces(text, marks)).toEqual([
      { text: 'a (', kind: 'plain' },
      { text: 'red', kind: 'heavier' },
      { text: ' ', kind: 'plain' },
      { text: 'boat', kind: 'heavier' },
      { text: ':1.2) ', kind: 'plain' },
      { text: '<lora:ink>', kind: 'unknown' },
      { text: ' ', kind: 'plain' },
      { text: 'sea', kind: 'lighter' },
    ])
  })

  it('counts code points as the server does', () => {
    const text = '🚀 red 🚀 boat'
    expect(pieces(text, marksOf(text, analysis([token(8, 12, 1.1)]))).at(-1)).toEqual({ text: 'boat', kind: 'heavier' })
  })

  it('keeps marks in place while the text is edited', () => {
    const [before, after] = ['red boat on sea', 'red wide boat on sea']
    const marks = marksOf(before, analysis([token(0, 3, 1.1), token(4, 8, 1.2), token(12, 15, 0.8)]))
    expect(pieces(after, moved(marks, before, after)).filter((one) => one.kind !== 'plain').map((one) => one.text)).toEqual(['red', 'boat', 'sea'])
    expect(moved(marks, before, 'red bo on sea').map((one) => one.kind)).toEqual(['heavier', 'lighter'])
    expect(moved(marks, before, '')).toEqual([])
  })
})

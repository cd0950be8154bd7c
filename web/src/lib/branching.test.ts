import { describe, expect, it } from 'vitest'
import type { Schemas } from './api'
import { branchingSteps, schedules, switches, usesSameNetworks, type Read } from './branching'

describe('schedules', () => {
  const first = (before: string, after: string): string | undefined => schedules(before, after, 9)[0]

  it('hold only the words that change', () => {
    expect(first('a red house in the snow', 'a yellow house in the snow')).toBe('a [red:yellow:9] house in the snow')
    expect(first('a red house', 'a big yellow house')).toBe('a [red:big yellow:9] house')
    expect(first('a red, big house', 'a blue, big house')).toBe('a [red:blue:9], big house')
    expect(first('a well-lit house', 'a well-kept house')).toBe('a [well-lit:well-kept:9] house')
    expect(first('ein rotes Haus über Köln', 'ein rotes Haus über Bonn')).toBe('ein rotes Haus über [Köln:Bonn:9]')
    expect(first('one\ntwo', 'one\nthree')).toBe('one\n[two:three:9]')
  })

  it('add and remove words', () => {
    expect(first('a house', 'a red house')).toBe('a [red :9]house')
    expect(first('a red house', 'a house')).toBe('a [red ::9]house')
    expect(first('a house', 'a house at night')).toBe('a house[ at night:9]')
    expect(first('a house at night', 'a house')).toBe('a house[ at night::9]')
    expect(first('red', 'blue')).toBe('[red:blue:9]')
    expect(first('a a', 'a a a')).toBe('a a[ a:9]')
  })

  it('leave brackets and weights around the words whole', () => {
    expect(first('a (red house:1.3)', 'a (blue house:1.3)')).toBe('a ([red:blue:9] house:1.3)')
    expect(first('a (red:1.3) house', 'a (red:1.4) house')).toBe('a (red:[1.3:1.4:9]) house')
    expect(first('a (red) house', 'a blue house')).toBe('a [(red):blue:9] house')
    expect(first('((red) house)', '((red) boat)')).toBe('((red) [house:boat:9])')
    expect(first('a (red house) here', 'a red house here')).toBe('a [(red house):red house:9] here')
  })

  it('grow to the brackets around them, then to the whole prompt', () => {
    expect(schedules('a (big (red:1.2) house) x', 'a (big (blue:1.2) house) x', 9)).toEqual([
      'a (big ([red:blue:9]:1.2) house) x',
      'a (big [(red:1.2):(blue:1.2):9] house) x',
      'a [(big (red:1.2) house):(big (blue:1.2) house):9] x',
      '[a (big (red:1.2) house) x:a (big (blue:1.2) house) x:9]',
    ])
    expect(schedules('a [red:blue:5] house', 'a [red:green:5] house', 9)).toEqual([
      'a [red:[blue:green:9]:5] house',
      'a [[red:blue:5]:[red:green:5]:9] house',
      '[a [red:blue:5] house:a [red:green:5] house:9]',
    ])
  })

  it('escape what would end a part', () => {
    expect(first('style: red', 'style; red')).toBe('style[\\::;:9] red')
    expect(first('one: two', 'three: four')).toBe('[one\\: two:three\\: four:9]')
    expect(first('a | b', 'c | d')).toBe('[a \\| b:c \\| d:9]')
    expect(first('x (one:two:1.2)', 'y (one:two:1.3)')).toBe('[x (one\\:two:1.2):y (one\\:two:1.3):9]')
    expect(first('[a|b] house', '[a|c] house [d:e:2]')).toBe('[[a|b] house:[a|c] house [d:e:2]:9]')
    expect(first('a \\(red\\) x', 'a \\(blue\\) x')).toBe('a \\([red:blue:9]\\) x')
    expect(first('a \\: b', 'c \\: d')).toBe('[a \\: b:c \\: d:9]')
  })

  it('are none where brackets have no partners', () => {
    expect(schedules('(a', 'b)', 9)).toEqual([])
    expect(schedules('a \\', 'b', 9)).toEqual([])
    expect(schedules('(a] x', 'b', 9)).toEqual([])
    expect(first('(a red house', '(a blue house')).toBe('(a [red:blue:9] house')
  })
})

const part = (words: string, more: Partial<Schemas['PartView']> = {}): Schemas['PartView'] => {
  const tokens = words.split(' ').map((text, at) => ({ start: at, end: at + 1, text, id: text.length * 31 + text.charCodeAt(0), weight: 1, chunk: 0 }))
  return { text: words, weight: 1, chunks: [tokens.length], tokens, warnings: [], ...more }
}

function read(text: string, ranges: [number, number, ...string[]][], names: Schemas['NameView'][] = []): Read {
  const steps = ranges.map(([first, last, ...texts]) => ({ first, last, parts: texts.map((one) => part(one)) }))
  return { text, analysis: { model: 'm', exact: true, chunk_size: 75, tokens: 1, names, steps, complete: true } }
}

describe('switches', () => {
  const before = read('a red house', [[1, 20, 'a red house']])
  const after = read('a blue house', [[1, 20, 'a blue house']])
  const says = (...ranges: [number, number, ...string[]][]): boolean => switches(read('?', ranges), before, after, 9, 20)

  it('holds for a prompt that changes after the step, and at no other', () => {
    expect(says([1, 9, 'a red house'], [10, 20, 'a blue house'])).toBe(true)
    expect(says([1, 8, 'a red house'], [9, 20, 'a blue house'])).toBe(false)
    expect(says([1, 10, 'a red house'], [11, 20, 'a blue house'])).toBe(false)
    expect(says([1, 20, '[a red house:a blue house:9]'])).toBe(false)
    expect(says([1, 9, 'a red house'], [10, 20, 'a blue', 'house'])).toBe(false)
  })

  it('compares weights, parts and chunks', () => {
    for (const change of [{ weight: 0.5 }, { chunks: [2, 1] }, { tokens: part('a red house').tokens.map((one) => ({ ...one, weight: 1.1 })) }]) {
      const other = read('?', [[1, 9, 'a red house'], [10, 20, 'a blue house']])
      other.analysis.steps[0]!.parts = [part('a red house', change)]
      expect(switches(other, before, after, 9, 20)).toBe(false)
    }
  })

  it('does not hold where the change was not analysed', () => {
    const long: [number, number, string][] = Array.from({ length: 9 }, (_, at) => [at + 1, at + 1, 'a red house'])
    expect(says(...long)).toBe(false)
  })

  it('tells learned words apart by what stands in the prompt', () => {
    const learned = (text: string, ...ranges: [number, number][]): Read => {
      const found = read(text, ranges.map(([first, last]) => [first, last, 'x']))
      found.analysis.steps.forEach(({ parts }, at) => (parts[0]!.tokens = [{ start: at * 4, end: at * 4 + 3, text: '', id: null, weight: 1, chunk: 0 }]))
      return found
    }
    expect(switches(learned('ink oil', [1, 9], [10, 20]), learned('ink', [1, 20]), learned('oil', [1, 20]), 9, 20)).toBe(true)
    expect(switches(learned('ink ink', [1, 9], [10, 20]), learned('ink', [1, 20]), learned('oil', [1, 20]), 9, 20)).toBe(false)
  })

  it('does not hold where networks were added', () => {
    const tag = { start: 1, end: 11, kind: 'lora', name: 'ink', known: true, trigger_words: [] } as Schemas['NameView']
    const one = read('😀<lora:ink> a', [[1, 20, 'a']], [tag])
    const other = read('😀<lora:oil> a', [[1, 20, 'a']], [tag])
    expect(usesSameNetworks(one, one)).toBe(true)
    expect(usesSameNetworks(one, other)).toBe(false)
    expect(switches(one, before, after, 9, 20)).toBe(false)
  })
})

describe('branchingSteps', () => {
  const revisiting = new Set(['restart'])
  const steps = [1, 2, 3, 4, 5, 6]
  const found = (request: object, all = steps) => branchingSteps({ prompt: 'a house', sampler: 'euler', steps: 6, ...request }, all, revisiting)

  it('are all but the last', () => {
    expect(found({})).toEqual([1, 2, 3, 4, 5])
    expect(found({ steps: 100 }, [50, 75, 100])).toEqual([50, 75])
  })

  it('are none of a prompt without a schedule, nor of a sampler that returns', () => {
    expect(found({ prompt: ' ' })).toBe('noPrompt')
    expect(found({ prompt_syntax: 'literal' })).toBe('literal')
    expect(found({ sampler: 'restart' })).toBe('sampler')
    expect(found({ steps: 1 }, [1])).toBe('oneStep')
  })

  it('are judged by the sampler of each pass', () => {
    const two = { steps: 3, hires_scale: 2 }
    expect(found(two)).toEqual([1, 2, 3, 4, 5])
    expect(found({ ...two, hires_sampler: 'restart' })).toEqual([1, 2, 3])
    expect(found({ ...two, sampler: 'restart', hires_sampler: 'euler' })).toEqual([3, 4, 5])
    expect(found({ ...two, sampler: 'restart' })).toEqual([3])
    expect(found({ ...two, hires_prompt: 'another' })).toEqual([1, 2])
  })
})

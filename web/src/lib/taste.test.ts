import { describe, expect, it } from 'vitest'
import { byTaste } from './taste'

describe('byTaste', () => {
  const order = (numbers: (number | undefined)[], scores: [number, number][]) =>
    byTaste(numbers.map((number, place) => ({ number, place })), new Map(scores)).map(({ place }) => place)

  it('puts the highest score first', () => {
    expect(order([1, 2, 3], [[1, -0.2], [2, 0.4], [3, 0.1]])).toEqual([1, 2, 0])
  })

  it('leaves what has no score, and then what is not done, at the end and in its order', () => {
    expect(order([undefined, 1, undefined, 2, 3], [[3, -1]])).toEqual([4, 1, 3, 0, 2])
    expect(order([undefined, 4, 5], [])).toEqual([1, 2, 0])
  })

  it('keeps the order of equal scores', () => {
    expect(order([1, 2, 3], [[1, 0.5], [2, 0.5], [3, 0.5]])).toEqual([0, 1, 2])
  })
})

import { describe, expect, it } from 'vitest'
import { layOut, rowAt } from './layout'

describe('layOut', () => {
  it('fills the width with whole pictures and leaves none out', () => {
    const ratios = Array.from({ length: 100 }, (_, index) => [1, 1.5, 0.66, 2][index % 4]!)
    const rows = layOut(ratios, 1000, 200, 8)
    for (let row = 0; row < rows.height.length - 1; row++) {
      const inside = ratios.slice(rows.first[row], rows.first[row + 1])
      const width = inside.reduce((sum, ratio) => sum + ratio * rows.height[row]!, 0) + 8 * (inside.length - 1)
      expect(width).toBeCloseTo(1000, 6)
      expect(rows.height[row]).toBeLessThanOrEqual(200)
      expect(rows.top[row + 1]! - rows.top[row]!).toBeCloseTo(rows.height[row]! + 8, 6)
    }
    expect(rows.first.at(-1)).toBe(100)
  })

  it('does not stretch a lonely picture over the whole width', () => {
    const rows = layOut([1], 1000, 200, 8)
    expect([...rows.height]).toEqual([200])
    expect(rows.top.at(-1)).toBe(200)
  })

  it('begins a row, below a heading, where a section begins', () => {
    const rows = layOut(Array.from({ length: 10 }, () => 1), 400, 100, 0, [0, 3, 4], 30)
    expect([...rows.first]).toEqual([0, 3, 4, 8, 10])
    const tops = [30, 133 + 1 / 3 + 60, 323 + 1 / 3, 423 + 1 / 3, 523 + 1 / 3]
    rows.top.forEach((top, row) => expect(top).toBeCloseTo(tops[row]!, 6))
    expect(rows.height[1]).toBe(100)
  })

  it('has no rows without pictures or width', () => {
    expect(layOut([], 1000, 200, 8).height).toHaveLength(0)
    expect(layOut([1, 1], 0, 200, 8).height).toHaveLength(0)
  })
})

describe('rowAt', () => {
  it('finds the row by height and by picture', () => {
    const rows = layOut(Array.from({ length: 40 }, () => 1), 400, 100, 0)
    expect(rowAt(rows.top, 0)).toBe(0)
    expect(rowAt(rows.top, 99.9)).toBe(0)
    expect(rowAt(rows.top, 100)).toBe(1)
    expect(rowAt(rows.top, 1e9)).toBe(9)
    expect(rowAt(rows.first, 39)).toBe(9)
  })
})

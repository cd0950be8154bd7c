import { expect, it } from 'vitest'
import { differenceOf } from './pixels'

it('counts the pixels that differ, and maps them brighter the more they do', () => {
  const a = Uint8ClampedArray.from([10, 20, 30, 255, 0, 0, 0, 255, 9, 9, 9, 255])
  const b = Uint8ClampedArray.from([10, 20, 30, 255, 0, 255, 0, 255, 9, 9, 8, 255])
  const map = new Uint8ClampedArray(12)
  expect(differenceOf(a, b, map)).toEqual({ different: 2, total: 3, largest: 255 })
  expect([...map.slice(0, 4)]).toEqual([0, 0, 0, 255])
  expect(map[4]!).toBeGreaterThan(map[8]!)
  expect(map[8]!).toBeGreaterThan(0)
})

import { expect, it } from 'vitest'
import { RATIOS, ratioOf, sized, turned, UNIT } from './shapes'

it.each([
  { width: 128, height: 128 },
  { width: 512, height: 512 },
  { width: 1024, height: 1024 },
])('keeps about as many pixels as $width × $height, in whole units', (base) => {
  for (const ratio of RATIOS) {
    const size = sized(ratio, base)
    expect(size.width % UNIT).toBe(0)
    expect(size.height % UNIT).toBe(0)
    expect((size.width * size.height) / (base.width * base.height)).toBeCloseTo(1, 0)
    expect(Math.abs(size.width / size.height - ratio[0] / ratio[1])).toBeLessThan(0.15)
    expect(ratioOf(size, base)).toEqual(ratio)
    expect(ratioOf(turned(size), base)).toEqual(ratio)
  }
  expect(ratioOf({ width: base.width + UNIT, height: base.height }, base)).toBeUndefined()
})
